"""The plan names every party's own machine, and the very same code runs elsewhere.

The machine is genuine, and so is what runs on it; even the party's own word may be
there. A party's machines are the one thing that whoever has another cannot show.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.custodian_port import custodian_line, custodian_port
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import (
    START,
    TEES,
    Federation,
    make_federation,
    quoting,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.plan_tree import measurement_of
from tests.support.recorded_log import RecordedLog
from tests.support.registers import content_of
from tests.support.running import Run
from tests.support.unwarranted import check_unwarranted, code_at, on, unwarranted

from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.cli.custodians import UnpinnedPlans, look_at_plans
from cloister.errors import RefusedByPeer, VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.enrolling import enrol
from cloister.ratls.mark import Mark

LOG = ["logs/aggregator.jsonl"]
MARK = Mark(round=3, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation whose plan names every party's machine."""
    return make_federation(tmp_path_factory.mktemp("pinned"), pinned=True)


@pytest.fixture(scope="module")
def open_federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation whose plan leaves all machines open."""
    return make_federation(tmp_path_factory.mktemp("open"))


def machine(
    federation: Federation, directory: Path, party: str, *, role: str
) -> SimulatedPlatform:
    """Returns a stranger's own machine: the vendor vouches for it as for any other."""
    federation.root.issue_platform(directory / "its", name="its", at=START)
    return load_simulated_platform(
        directory / "its", tee=TEES[party], measurement=measurement_of(role)
    )


def test_bobs_machine_is_not_alices(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """A party is a stranger like any other under another party's name."""
    bobs = replace(federation.platform("bob"), measurement=measurement_of("worker"))
    posing = on(bobs, federation.node("alice"))

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path) as custodian:
            async with custodian_port(custodian) as office:
                before = content_of(custodian.register)
                assert await code_at(posing, office.address) == "appraisal-platform"
                assert office.refusals() == ["appraisal-platform"]
                assert content_of(custodian.register) == before

    run(story())
    check_unwarranted(posing)


def test_a_warranted_node_on_another_machine_is_not_admitted(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """Whoever got alice's custodian to sign: the server looks for itself."""
    its = machine(federation, tmp_path, "alice", role="worker")
    stranger = quoting(federation.node("alice"), its)

    async def story() -> None:
        async with open_server(federation.node("aggregator"), tmp_path / "s") as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(stranger, port.enrolment)
            assert caught.value.code == "appraisal-platform"
            assert port.admitted() == []
            assert port.refusals() == ["appraisal-platform"]
            assert port.coordinator.traffic.sent == 0
            await enrol(federation.node("alice"), port.enrolment)
            assert port.admitted() == [("alice", 1)]
            assert port.files() == LOG

    run(story())


def test_a_server_on_another_machine_gets_no_evidence_and_no_worker(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """The server sees every update: its machine counts most of all."""
    its = machine(federation, tmp_path, "aggregator", role="server")
    posing = quoting(federation.node("aggregator"), its)
    alice = federation.node("alice")
    own = CountingPlatform(alice.platform)

    async def story() -> None:
        async with open_server(posing, tmp_path / "s") as port:
            with pytest.raises(VerificationError) as caught:
                await enrol(quoting(alice, own), port.enrolment)
            assert caught.value.code == "appraisal-platform"
            assert not isinstance(caught.value, RefusedByPeer)
            assert own.quotes == 0
            assert port.admitted() == []
            assert port.files() == LOG

    run(story())


def test_a_policy_of_her_own_does_not_take_the_plans_machines_away(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """It can only refuse more: 'any' beside the plan's list accepts no machine more."""
    its = machine(federation, tmp_path, "alice", role="worker")
    stranger = on(its, federation.node("alice"))
    lax = msgspec.structs.replace(federation.plan.policy_for("worker"), platforms="any")

    async def story() -> None:
        with custodian_of(
            federation, "alice", tmp_path / "office", local_policy=lax
        ) as custodian:
            async with custodian_port(custodian) as office:
                assert await code_at(stranger, office.address) == "appraisal-platform"
                assert custodian.register.warrants() == ()

    run(story())


def test_a_custodian_says_once_that_a_plan_leaves_its_machines_open(
    run: Run, open_federation: Federation, tmp_path: Path
) -> None:
    log = RecordedLog()

    async def story() -> None:
        with custodian_of(open_federation, "alice", tmp_path) as quiet:
            custodian = replace(quiet, on_unpinned=UnpinnedPlans(log.logger()))
            look_at_plans(custodian)
            assert len(log.events) == 1
            async with custodian_port(custodian) as office:
                for _ in range(3):
                    node, _ = unwarranted(open_federation, "alice")
                    async with custodian_line(node, office.address) as line:
                        await line.renew()

    run(story())
    [line] = log.events
    assert (line["event"], line["level"]) == ("platforms-not-pinned", "warning")
    assert line["run"] == open_federation.plan.run_id
    assert line["plan"] == plan_hash(open_federation.plan).hex()[:16]


@pytest.mark.parametrize("by", ["plan", "policy"])
def test_a_custodian_whose_machines_are_named_has_nothing_to_say(
    federation: Federation, open_federation: Federation, tmp_path: Path, by: str
) -> None:
    log = RecordedLog()
    within = federation if by == "plan" else open_federation
    own = federation.plan.find_party("alice").platforms
    assert own is not None
    local = msgspec.structs.replace(within.plan.policy_for("worker"), platforms=own)
    with custodian_of(
        within, "alice", tmp_path, local_policy=local if by == "policy" else None
    ) as quiet:
        look_at_plans(replace(quiet, on_unpinned=UnpinnedPlans(log.logger())))
    assert log.events == []
