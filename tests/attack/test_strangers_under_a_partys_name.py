"""Genuine code on a genuine machine, started by a stranger under alice's name.

It passes every attestation. What it lacks is the word of alice's party.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.addresses import free_addresses
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custodians import Custodians
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import (
    START,
    TEES,
    Federation,
    make_federation,
    quoting,
    warranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.plan_tree import measurement_of
from tests.support.raw_messages import refusal_in
from tests.support.registers import content_of
from tests.support.running import Run
from tests.support.unwarranted import check_unwarranted, on, unwarranted
from tests.support.whole_run import make_scene, sources, task

from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.policy_schema import Policy
from cloister.custody.messages import decode_from_custodian
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD
from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.ratls.challenge import encode_message
from cloister.ratls.enrolling import enrol
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.warrant import Warrant, sign_warrant

LOG = ["logs/aggregator.jsonl"]
MARK = Mark(round=3, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


@pytest.fixture(scope="module")
def machine(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> SimulatedPlatform:
    """A stranger's own machine: the vendor vouches for it as for any other."""
    directory = tmp_path_factory.mktemp("stranger")
    federation.root.issue_platform(directory / "its", name="its", at=START)
    return load_simulated_platform(
        directory / "its", tee=TEES["alice"], measurement=measurement_of("worker")
    )


@pytest.fixture
def stranger(federation: Federation, machine: SimulatedPlatform) -> Node:
    return on(machine, federation.node("alice"))


def warrants_of_a_stranger(
    federation: Federation, node: Node, former: Node
) -> list[tuple[Warrant, str]]:
    """Returns all that a stranger can lay hands on, and why it does not hold."""
    terms = federation.terms("alice", node.identity.tls_spki, epoch=9)
    as_bob = federation.terms("bob", node.identity.tls_spki)
    return [
        (sign_warrant(terms, Ed25519PrivateKey.generate()), "warrant-signature"),
        (sign_warrant(terms, federation.keys["bob"]), "warrant-signature"),
        (sign_warrant(as_bob, federation.keys["bob"]), "warrant-signature"),
        (federation.node("bob").warrant.current, "warrant-signature"),
        (former.warrant.current, "warrant-foreign"),
        (
            msgspec.structs.replace(former.warrant.current, terms=terms),
            "warrant-signature",
        ),
    ]


def test_a_stranger_with_every_warrant_there_is_is_admitted_nowhere(
    run: Run, federation: Federation, stranger: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        server, alice = federation.node("aggregator"), federation.node("alice")
        counting = CountingPlatform(server.platform)
        own = CountingPlatform(stranger.platform)
        tried = warrants_of_a_stranger(federation, stranger, alice)
        async with open_server(quoting(server, counting), tmp_path) as port:
            made = counting.quotes
            for warrant, code in tried:
                posing = warranted(quoting(stranger, own), warrant)
                with pytest.raises(RefusedByPeer) as caught:
                    await enrol(posing, port.enrolment)
                assert caught.value.code == code
            # Not a quote was made for it, nor by it.
            assert (counting.quotes, own.quotes) == (made, 0)
            assert port.admitted() == []
            assert port.refusals() == [code for _, code in tried]
            assert port.coordinator.traffic.sent == 0
            # It used up nothing of alice's: neither her name nor her epoch.
            await enrol(alice, port.enrolment)
            await enrol(federation.node("bob"), port.enrolment)
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert port.files() == LOG

    run(story())


def test_a_stranger_that_reaches_no_custodian_trains_nothing(
    run: Run, federation: Federation, stranger: Node, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation, patience_seconds=0.2)

    async def story() -> None:
        [nowhere] = free_addresses(1)
        async with custodian_line(stranger, nowhere) as line:
            with pytest.raises(CloisterError) as caught:
                await line.first_warrant(patience_seconds=0.2)
            assert caught.value.code == "custodian-unreachable"
            with pytest.raises(CloisterError) as caught:
                await scene.work(stranger, task(), sources()["alice"], custodian=line)
            assert caught.value.code == "no-warrant"

    run(story())
    assert scene.events("alice", "round") == []
    assert scene.files() == ["logs/alice.jsonl"]
    assert not scene.custodians.directory.exists()


@pytest.mark.parametrize("other", ["bob", "aggregator"])
def test_a_stranger_at_another_partys_custodian_gets_no_warrant_in_alices_name(
    run: Run, federation: Federation, stranger: Node, tmp_path: Path, other: str
) -> None:
    """Its own code would not go there; a host's tool does, with the node's hello."""
    with custodian_of(federation, other, tmp_path) as custodian:
        before = content_of(custodian.register)

        async def story() -> None:
            async with custodian_port(custodian) as office:
                async with raw_call(office.address, METHOD) as call:
                    await call.write(encode_message(NodeMeeting(stranger).hello()))
                    refusal = await refusal_in(call, decode_from_custodian)
                assert refusal.code == "party-differs"
                assert office.refusals() == ["party-differs"]

        run(story())
        check_unwarranted(stranger)
        assert content_of(custodian.register) == before


def platform_policy(federation: Federation, node: Node) -> Policy:
    """Returns the plan's policy for workers, on the machine of one node alone."""
    policy = federation.plan.policy_for("worker")
    claims = node.appraiser.verify(
        node.platform.quote(bytes(64)), expected_report_data=bytes(64)
    )
    return msgspec.structs.replace(policy, platforms=(claims.ppid,))


def test_a_stranger_that_reaches_alices_custodian_runs_on_another_machine_than_hers(
    run: Run, federation: Federation, alice: Node, stranger: Node, tmp_path: Path
) -> None:
    local = platform_policy(federation, alice)
    with custodian_of(federation, "alice", tmp_path, local_policy=local) as custodian:

        async def story() -> None:
            node, _ = unwarranted(federation, "alice")
            async with (
                custodian_port(custodian) as office,
                custodian_line(node, office.address) as line,
            ):
                await line.renew()
                before = content_of(custodian.register)
                async with custodian_line(stranger, office.address) as other:
                    with pytest.raises(VerificationError) as caught:
                        await other.renew()
                assert caught.value.code == "appraisal-platform"
                assert office.refusals() == ["appraisal-platform"]
                assert content_of(custodian.register) == before
                # Alice's own node is still the newest.
                await line.deposit(MARK)

        run(story())
        check_unwarranted(stranger)
        assert [row.epoch for row in custodian.register.warrants()] == [1]


def test_where_the_plan_names_alices_machine_the_stranger_gets_no_warrant(
    run: Run, tmp_path: Path
) -> None:
    """She needs no policy of her own for it."""
    pinned = make_federation(tmp_path / "keys", pinned=True)
    pinned.root.issue_platform(tmp_path / "its", name="its", at=START)
    its = load_simulated_platform(
        tmp_path / "its", tee=TEES["alice"], measurement=measurement_of("worker")
    )
    stranger = on(its, pinned.node("alice"))
    custodians = Custodians(
        federation=pinned, directory=tmp_path / "offices", plan=pinned.plan
    )

    async def story() -> None:
        node, _ = unwarranted(pinned, "alice")
        async with custodians.office("alice") as office, office.line(node) as line:
            async with custodian_line(stranger, office.address) as other:
                with pytest.raises(VerificationError) as caught:
                    await other.renew()
            assert caught.value.code == "appraisal-platform"
            # Nothing happened to her own node.
            await line.deposit(MARK)
            assert len(office.log.named("warrant-signed")) == 1

    run(story())
    check_unwarranted(stranger)
    assert custodians.mark("alice") == MARK
    with custodians.register("alice") as register:
        assert [row.epoch for row in register.warrants()] == [1]


def test_where_nobody_names_it_alice_learns_of_it_when_her_node_stops(
    run: Run, federation: Federation, stranger: Node, tmp_path: Path
) -> None:
    """What neither plan nor policy says, a custodian cannot tell: whose machine it is.

    The stranger's node takes the place of alice's, and nothing goes on unseen.
    """
    custodians = Custodians(
        federation=federation, directory=tmp_path, plan=federation.plan
    )

    async def story() -> None:
        node, _ = unwarranted(federation, "alice")
        async with (
            custodians.office("alice") as office,
            office.line(node) as line,
            office.line(stranger),
        ):
            with pytest.raises(RefusedByPeer) as caught:
                await line.deposit(MARK)
            assert caught.value.code == "warrant-superseded"
            signed = office.log.named("warrant-signed")
            assert [it["epoch"] for it in signed] == [1, 2]
            assert len({str(it["key"]) for it in signed}) == 2

    run(story())
    assert custodians.mark("alice") is None
    with custodians.register("alice") as register:
        assert [row.epoch for row in register.warrants()] == [1, 2]
