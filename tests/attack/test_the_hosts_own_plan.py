"""A host writes the plan itself, with keys of its own under the parties' names.

It signs all consents and runs all custodians. Nothing on its disk tells its federation
from the genuine one; what it cannot have is the genuine parties' custodians.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custodians import Custodians, text_of
from tests.support.custody_meeting import custodian_of
from tests.support.enrolment_port import raw_call
from tests.support.federation_in_memory import (
    START,
    Federation,
    quoting,
    warranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.raw_messages import refusal_in
from tests.support.recorded_log import RecordedLog
from tests.support.registers import Content, content_of
from tests.support.running import Run
from tests.support.unwarranted import check_unwarranted, unwarranted

from cloister.custody.messages import decode_from_custodian
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.service import METHOD
from cloister.errors import CloisterError, RefusedByPeer, VerificationError
from cloister.plan.consent import (
    check_consents,
    consents_directory,
    sign_consent,
    write_consent,
)
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.challenge import encode_message
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node
from cloister.ratls.warrant import sign_warrant

PARTIES = ("aggregator", "alice", "bob")


@pytest.fixture(scope="module")
def hosts(federation: Federation, other_federation: Federation) -> Plan:
    """The genuine plan but for whose keys stand in it, and who gets the model."""
    return msgspec.structs.replace(
        federation.plan,
        party=tuple(
            msgspec.structs.replace(
                it, key=other_federation.plan.find_party(it.name).key
            )
            for it in federation.plan.party
        ),
        model=other_federation.plan.model,
    )


def registers_of(custodians: Custodians) -> Mapping[str, Content]:
    contents = {}
    for party in PARTIES:
        with custodians.register(party) as register:
            contents[party] = content_of(register)
    return contents


@pytest.fixture
def genuine(federation: Federation, tmp_path: Path) -> Custodians:
    """The parties' own custodians; they consented to their own plan."""
    return Custodians(
        federation=federation, directory=tmp_path / "genuine", plan=federation.plan
    )


@pytest.mark.parametrize("party", PARTIES)
def test_a_genuine_node_on_the_hosts_plan_does_not_take_the_genuine_custodian_for_its(
    run: Run,
    federation: Federation,
    genuine: Custodians,
    hosts: Plan,
    party: str,
) -> None:
    before = registers_of(genuine)

    async def story() -> None:
        node, counting = unwarranted(federation, party, plan=hosts)
        log = RecordedLog()
        async with (
            genuine.office(party) as office,
            custodian_line(node, office.address, log=log) as line,
        ):
            with pytest.raises(VerificationError) as caught:
                await line.first_warrant(patience_seconds=5)
            assert caught.value.code == "custodian-certificate-signature"
            # Whatever else asks in its place, the custodian never consented.
            async with raw_call(office.address, METHOD) as call:
                await call.write(encode_message(NodeMeeting(node).hello()))
                refusal = await refusal_in(call, decode_from_custodian)
            assert (refusal.code, refusal.expected) == ("plan-not-consented", "")
            [line_of] = office.log.named("node-refused")
            assert line_of["code"] == "plan-not-consented"
        check_unwarranted(node)
        assert counting.quotes == 0
        assert log.named("warranted") == []

    run(story())
    assert registers_of(genuine) == before


def test_a_federation_of_the_hosts_own_is_one_by_itself(
    run: Run,
    federation: Federation,
    other_federation: Federation,
    genuine: Custodians,
    hosts: Plan,
    tmp_path: Path,
) -> None:
    """All its consents are good and all its nodes warranted, by its own keys."""
    path = tmp_path / "plan.toml"
    path.write_bytes(text_of(hosts))
    for party in PARTIES:
        key = other_federation.keys[party]
        consent = sign_consent(hosts, party=party, key=key, at=START)
        write_consent(consent, consents_directory(path, hosts))
    # So consents say who signed, and not whose keys they should have been.
    assert len(check_consents(hosts, path, at=START).by_party) == 3
    before = registers_of(genuine)

    async def story() -> None:
        posing, quotes = unwarranted(federation, "alice", plan=hosts)
        with custodian_of(
            other_federation, "alice", tmp_path / "hosts", plan=hosts
        ) as custodian:
            # Evidence of the genuine root, for that is what the host's plan names.
            honest = federation.appraiser(posing.clock)
            own = replace(custodian, appraiser=honest)
            async with (
                custodian_port(own) as office,
                custodian_line(posing, office.address) as line,
            ):
                await line.renew()
        assert posing.warrant.current.terms.epoch == 1

        server = federation.node("aggregator")
        counting = CountingPlatform(server.platform)
        async with open_server(quoting(server, counting), tmp_path / "run") as port:
            made, own_made = counting.quotes, quotes.quotes
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(posing, port.enrolment)
            assert caught.value.code == "plan-differs"
            # The same words under the genuine plan's hash: another party's warrant.
            genuine_plan = replace(
                posing, plan=federation.plan, plan_hash=plan_hash(federation.plan)
            )
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(genuine_plan, port.enrolment)
            assert caught.value.code == "warrant-signature"
            assert (counting.quotes, quotes.quotes) == (made, own_made)
            assert port.admitted() == []
            assert port.refusals() == ["plan-differs", "warrant-signature"]
            for party in ("alice", "bob"):
                await enrol(federation.node(party), port.enrolment)
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())
    assert registers_of(genuine) == before


def test_a_genuine_worker_led_to_the_hosts_server_hears_another_partys_warrant(
    run: Run,
    federation: Federation,
    other_federation: Federation,
    alice: Node,
    hosts: Plan,
    tmp_path: Path,
) -> None:
    """Genuine code on a genuine machine; only the host's word is behind it."""

    async def story() -> None:
        counting = CountingPlatform(alice.platform)
        for plan, code in (
            (hosts, "plan-differs"),
            (federation.plan, "warrant-signature"),
        ):
            server = of_the_host(federation, other_federation, plan)
            async with open_server(server, tmp_path / code) as port:
                with pytest.raises(CloisterError) as caught:
                    await enrol(quoting(alice, counting), port.enrolment)
                assert caught.value.code == code
                assert port.admitted() == []
                assert port.refusals() == [code]
                assert port.files() == ["logs/aggregator.jsonl"]
        assert counting.quotes == 0

    run(story())


def of_the_host(federation: Federation, other: Federation, plan: Plan) -> Node:
    """Returns a genuine server's node that nobody but the host warranted."""
    node = federation.node("aggregator")
    digest = plan_hash(plan)
    terms = msgspec.structs.replace(node.warrant.current.terms, plan_hash=digest)
    signed = sign_warrant(terms, other.keys["aggregator"])
    return replace(warranted(node, signed), plan=plan, plan_hash=digest)
