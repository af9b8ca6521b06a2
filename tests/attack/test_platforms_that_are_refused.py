"""Genuine evidence from machines that the plan does not want, through whole handshakes.

Each machine tries everything that there is to try: a warrant of its party's custodian,
an admission by the server, and to be the server itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import (
    ask_for_warrant,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import Federation, make_federation, quoting
from tests.support.hostile_platforms import ChangingPlatform, CountingPlatform
from tests.support.odd_machines import BEHIND, judging_behind, odd_platform
from tests.support.open_server import open_server
from tests.support.plan_tree import Tree, measurement_of, put
from tests.support.published_collateral import publish, revoking
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.simulated.profile import MACHINE
from cloister.attestation.platforms.simulated.quotes import TD_15_V5
from cloister.attestation.reports import SGX_FLAG_DEBUG, TD_FLAG_DEBUG
from cloister.errors import ProtocolError, RefusedByPeer, VerificationError
from cloister.ratls.enrolling import enrol

Make = Callable[[Federation, str], Platform]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of machine that nobody should deal with.

    Attributes:
        make: Makes it for a role, and publishes what is said of it.
        code: Why it is refused.
        listed: Whether the plan lists its parties' own platforms.
    """

    make: Make
    code: str
    listed: bool = False


def revoked(federation: Federation, role: str) -> Platform:
    party = "aggregator" if role == "server" else "alice"
    platform = federation.platform(party)
    publish(federation, revoking(platform.tee, platform.quote(bytes(64))))
    return platform


def debug_enclave(federation: Federation, role: str) -> Platform:
    flags = MACHINE.enclave_flags | SGX_FLAG_DEBUG
    machine = replace(MACHINE, enclave_flags=flags)
    return odd_platform(federation, role, "sgx", machine=machine)


def debug_domain(federation: Federation, role: str) -> Platform:
    machine = replace(MACHINE, td_flags=MACHINE.td_flags | TD_FLAG_DEBUG)
    return odd_platform(federation, role, "tdx", machine=machine)


def out_of_date_enclave(federation: Federation, role: str) -> Platform:
    publish(federation, judging_behind("sgx", "OutOfDate"))
    return odd_platform(federation, role, "sgx", machine=BEHIND)


def out_of_date_domain(federation: Federation, role: str) -> Platform:
    publish(federation, judging_behind("tdx", "OutOfDate"))
    return odd_platform(federation, role, "tdx", machine=BEHIND)


def in_need_of_hardening(federation: Federation, role: str) -> Platform:
    """Nothing is out of date; the code that it runs should take care by itself."""
    publish(federation, judging_behind("tdx", "SWHardeningNeeded"))
    return odd_platform(federation, role, "tdx", machine=BEHIND)


def open_to_an_advisory(federation: Federation, role: str) -> Platform:
    advisory = ("INTEL-SA-00615",)
    publish(federation, judging_behind("sgx", "UpToDate", advisory_ids=advisory))
    return odd_platform(federation, role, "sgx", machine=BEHIND)


def unlisted(federation: Federation, role: str) -> Platform:
    return odd_platform(federation, role, "tdx")


def with_another_kernel(federation: Federation, role: str) -> Platform:
    good = measurement_of(role)
    changed = replace(good, rtmr1=bytes([good.rtmr1[0] ^ 1]) + good.rtmr1[1:])
    return odd_platform(federation, role, "tdx", measurement=changed)


def with_a_service_domain(federation: Federation, role: str) -> Platform:
    machine = replace(MACHINE, mrservicetd=bytes(47) + b"\1")
    return odd_platform(federation, role, "tdx", machine=machine, form=TD_15_V5)


def below_every_level(federation: Federation, role: str) -> Platform:
    """Started on a TDX module that is older than all that Intel has a word for."""
    old = bytes([MACHINE.tee_tcb_svn[0] - 1]) + MACHINE.tee_tcb_svn[1:]
    machine = replace(MACHINE, tee_tcb_svn=old)
    return odd_platform(federation, role, "tdx", machine=machine, form=TD_15_V5)


CASES = {
    "revoked": Case(make=revoked, code="certificate-revoked"),
    "debug-enclave": Case(make=debug_enclave, code="appraisal-debug"),
    "debug-domain": Case(make=debug_domain, code="appraisal-debug"),
    "out-of-date-enclave": Case(make=out_of_date_enclave, code="appraisal-tcb-status"),
    "out-of-date-domain": Case(make=out_of_date_domain, code="appraisal-tcb-status"),
    "hardening-needed": Case(make=in_need_of_hardening, code="appraisal-tcb-status"),
    "old-module": Case(make=below_every_level, code="tcb-not-supported"),
    "advisory": Case(make=open_to_an_advisory, code="appraisal-advisories"),
    "unlisted": Case(make=unlisted, code="appraisal-platform", listed=True),
    "other-kernel": Case(make=with_another_kernel, code="appraisal-measurement"),
    "service-domain": Case(make=with_a_service_domain, code="appraisal-service-td"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Case], Federation]:
    """Makes a federation whose collateral a story may replace."""
    directory = tmp_path / "federation"

    def listing_platforms(tree: Tree) -> Tree:
        ids: list[object] = [
            json.loads((directory / name / "platform.json").read_text())["ppid"]
            for name in ("aggregator", "alice", "bob")
        ]
        for role in ("server", "worker"):
            put(tree, ("policy", role, "platforms"), ids)  # type: ignore[arg-type]
        return tree

    def make_it(case: Case) -> Federation:
        if case.listed:
            return make_federation(directory, change=listing_platforms)
        return make_federation(directory)

    return make_it


@every_case
def test_a_machine_that_is_not_wanted_gets_no_warrant_and_spends_no_epoch(
    run: Run, make: Callable[[Case], Federation], tmp_path: Path, case: Case
) -> None:
    federation = make(case)
    good = federation.node("alice")
    odd = CountingPlatform(case.make(federation, "worker"))

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
            async with custodian_on_disk(custodian, tmp_path) as office:
                node = unwarranted(quoting(federation.node("alice"), odd))
                log = RecordedLog()
                with pytest.raises(RefusedByPeer) as caught:
                    await ask_for_warrant(node, office, log=log)
                assert caught.value.code == case.code
                # It is a stranger still, and hears no more than a code and a line.
                assert (caught.value.expected, caught.value.got) == ("", "")
                with pytest.raises(ProtocolError, match="no warrant"):
                    _ = node.warrant.current
                assert odd.quotes == 1
                assert log.named("warranted") == []
                assert office.warrants() == ()
                [line] = office.events("node-refused")
                assert line["code"] == case.code
                assert office.events("warrant-signed") == []

                if case.make is not revoked:  # alice's only machine
                    await ask_for_warrant(unwarranted(good), office)
                    [row] = office.warrants()
                    assert row.epoch == 1

    run(story())


@every_case
def test_a_machine_that_is_not_wanted_is_not_admitted_whatever_its_custodian_says(
    run: Run, make: Callable[[Case], Federation], tmp_path: Path, case: Case
) -> None:
    """Its party's custodian is lax, or taken over: the warrant is good."""
    federation = make(case)
    odd = CountingPlatform(case.make(federation, "worker"))
    node = quoting(federation.node("alice"), odd)
    bob = federation.node("bob")
    counting = CountingPlatform(federation.platform("aggregator"))
    # A machine of the server's that is revoked too would end the story early.
    server = quoting(federation.node("aggregator"), counting)

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(node, port.enrolment)
            assert caught.value.code == case.code
            assert port.admitted() == []
            # The certificate's, and one after the warrant held.
            assert counting.quotes == 2
            assert odd.quotes == 1
            assert port.refusals() == [case.code]

            await enrol(bob, port.enrolment)
            assert port.admitted() == [("bob", 1)]
            [admitted] = port.events("peer-admitted")
            assert admitted["peer"] == "bob"
            assert port.coordinator.traffic.sent == 0
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


@every_case
def test_a_server_on_a_machine_that_is_not_wanted_hears_nothing_of_a_worker(
    run: Run, make: Callable[[Case], Federation], tmp_path: Path, case: Case
) -> None:
    federation = make(case)
    odd = CountingPlatform(case.make(federation, "server"))
    server = quoting(federation.node("aggregator"), odd)
    own = CountingPlatform(federation.platform("alice"))
    alice = quoting(federation.node("alice"), own)

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            with pytest.raises(VerificationError) as caught:
                await enrol(alice, port.enrolment)
            assert not isinstance(caught.value, RefusedByPeer)
            assert caught.value.code == case.code
            assert own.quotes == 0
            assert odd.quotes == 1, "no hello ever came"
            assert port.admitted() == []
            [line] = port.events("refused-by-peer")
            assert line["code"] == case.code
            assert "alice" not in json.dumps(port.events("refused-by-peer"))
            assert port.events("peer-refused") == []

    run(story())


@every_case
def test_a_server_that_moved_to_such_a_machine_after_its_start_gets_no_evidence(
    run: Run, make: Callable[[Case], Federation], tmp_path: Path, case: Case
) -> None:
    """The evidence in its certificate is genuine and good, and replayed."""
    federation = make(case)
    later = case.make(federation, "server")
    good: Platform = federation.platform("aggregator")
    if case.make is revoked:  # not the one with which it started
        later, good = good, odd_platform(federation, "server", "sgx")
    moved = ChangingPlatform(good, later=later)
    server = quoting(federation.node("aggregator"), moved)
    own = CountingPlatform(federation.platform("bob"))
    bob = quoting(federation.node("bob"), own)

    async def story() -> None:
        async with open_server(server, tmp_path / "run") as port:
            with pytest.raises(VerificationError) as caught:
                await enrol(bob, port.enrolment)
            assert not isinstance(caught.value, RefusedByPeer)
            assert caught.value.code == case.code
            assert own.quotes == 0
            assert moved.quotes == 2
            # A forger must not age the real server: a later one is met as before.
            assert bob.epochs._newest == {}
            assert port.admitted() == []
            assert port.refusals() == [case.code]

    run(story())
