from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.audit import FullDisk, RecordedDoor
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.meeting import Meeting
from tests.support.plan_tree import by_identity
from tests.support.published_collateral import (
    collateral_path,
    out_of_date,
    publish,
    revoking,
    up_to_date,
)
from tests.support.recorded_log import RecordedLog
from tests.support.refusals import code_of
from tests.support.running import Run, until
from typing_extensions import override

from cloister.attestation.collateral import Collateral
from cloister.attestation.collateral_source import CollateralFiles, PckCa
from cloister.attestation.reports import Tee
from cloister.errors import StorageError, VerificationError
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import keep_reappraising, reappraise


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """A federation whose collateral these tests may replace."""
    return make_federation(tmp_path)


class Story:
    """A server that admitted alice (TDX) and bob (SGX) when all was well."""

    def __init__(self, federation: Federation, clock: HandClock) -> None:
        self.federation = federation
        self.server = federation.node("aggregator", clock=clock)
        self.nodes = {
            party: federation.node(party, clock=clock) for party in ("alice", "bob")
        }
        self.table = AdmissionTable(self.server.clock)
        self.log = RecordedLog()
        self.door = RecordedDoor()
        for node in self.nodes.values():
            self.enrol(node)

    def enrol(self, node: Node) -> None:
        Meeting(self.server, node, table=self.table).finish()

    async def reappraise(self) -> None:
        await reappraise(
            self.server, self.table, audit=self.door, log=self.log.logger()
        )

    def quote_of(self, party: str) -> bytes:
        """Returns the evidence that a party was admitted with."""
        [quote] = [it.quote for it in self.table.admitted() if it.peer.party == party]
        assert quote is not None
        return quote

    def out(self) -> dict[str, str]:
        """Returns who may speak no more, and by which code."""
        codes = {}
        for party, node in self.nodes.items():
            key = node.identity.tls_spki
            try:
                self.table.check(key)
            except VerificationError as error:
                codes[party] = error.code
        return codes


@pytest.fixture
def story(federation: Federation, clock: HandClock) -> Story:
    return Story(federation, clock)


def test_evidence_that_is_still_good_changes_nothing(run: Run, story: Story) -> None:
    before = story.table.admitted()
    run(story.reappraise())
    publish(story.federation, up_to_date("tdx"))
    run(story.reappraise())
    assert story.table.admitted() == before
    assert story.log.events == []


def test_after_a_tcb_recovery_the_peer_is_out_and_the_others_stay(
    run: Run, story: Story
) -> None:
    publish(story.federation, out_of_date("tdx"))
    assert story.out() == {}
    run(story.reappraise())
    assert story.out() == {"alice": "admission-withdrawn"}
    [line] = story.log.named("admission-withdrawn")
    assert (line["peer"], line["code"]) == ("alice", "appraisal-tcb-status")


def test_a_revoked_platform_is_out_and_the_others_stay(run: Run, story: Story) -> None:
    publish(story.federation, revoking("sgx", story.quote_of("bob")))
    run(story.reappraise())
    assert story.out() == {"bob": "admission-withdrawn"}
    [line] = story.log.named("admission-withdrawn")
    assert str(line["code"]).endswith("revoked")


def test_who_is_out_is_told_once_and_stays_out(run: Run, story: Story) -> None:
    publish(story.federation, out_of_date("tdx"))
    run(story.reappraise())
    publish(story.federation, up_to_date("tdx"))
    run(story.reappraise())
    assert story.out() == {"alice": "admission-withdrawn"}
    assert len(story.log.events) == 1


def test_who_is_out_attests_again_in_vain_until_the_platform_is_mended(
    run: Run, story: Story
) -> None:
    publish(story.federation, out_of_date("tdx"))
    run(story.reappraise())
    alice = story.nodes["alice"]
    assert code_of(lambda: story.enrol(alice)) == "appraisal-tcb-status"
    publish(story.federation, up_to_date("tdx"))
    story.enrol(alice)
    assert story.out() == {}
    run(story.reappraise())
    assert story.out() == {}


def test_collateral_that_cannot_be_had_changes_nothing(run: Run, story: Story) -> None:
    before = story.table.admitted()
    collateral_path(story.federation, "tdx").unlink()
    collateral_path(story.federation, "sgx").write_text("{")
    run(story.reappraise())
    assert story.table.admitted() == before
    failed = {
        line["peer"]: line["code"] for line in story.log.named("reappraisal-failed")
    }
    assert failed == {"alice": "collateral-missing", "bob": "collateral-damaged"}
    assert story.out() == {}


def test_one_peers_missing_collateral_hides_no_other_peers_revocation(
    run: Run, story: Story
) -> None:
    collateral_path(story.federation, "tdx").unlink()
    publish(story.federation, revoking("sgx", story.quote_of("bob")))
    run(story.reappraise())
    assert story.out() == {"bob": "admission-withdrawn"}


def test_nobody_is_judged_by_a_party_key(
    run: Run, tmp_path: Path, clock: HandClock
) -> None:
    mixed = make_federation(
        tmp_path / "mixed", change=lambda tree: by_identity(tree, "bob")
    )
    story = Story(mixed, clock)
    for tee in ("sgx", "tdx"):
        publish(mixed, out_of_date(tee))
    run(story.reappraise())
    assert story.out() == {"alice": "admission-withdrawn"}


def test_evidence_for_another_exchange_would_be_found_out(
    run: Run, story: Story
) -> None:
    """What is kept is judged whole: report data, too."""
    for line in story.table.admitted():
        story.table.admit(replace(line, report_data=bytes(64)))
    run(story.reappraise())
    assert story.out() == {
        "alice": "admission-withdrawn",
        "bob": "admission-withdrawn",
    }
    codes = {line["code"] for line in story.log.named("admission-withdrawn")}
    assert codes == {"report-data"}


def test_it_goes_on_as_long_as_the_server_runs(run: Run, story: Story) -> None:
    async def tale() -> None:
        reappraising = asyncio.ensure_future(
            keep_reappraising(
                story.server,
                story.table,
                audit=story.door,
                log=story.log.logger(),
                every_seconds=0.0,
            )
        )
        publish(story.federation, revoking("sgx", story.quote_of("bob")))
        await until(lambda: "bob" in story.out())
        publish(story.federation, out_of_date("tdx"))
        await until(lambda: "alice" in story.out())
        reappraising.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reappraising

    run(tale())


def test_the_end_of_an_admission_is_recorded_before_it_takes_effect(
    run: Run, story: Story
) -> None:
    seen: list[dict[str, str]] = []
    story.door = RecordedDoor(look=lambda: seen.append(story.out()))
    [before] = [it for it in story.table.admitted() if it.peer.party == "alice"]
    publish(story.federation, out_of_date("tdx"))
    run(story.reappraise())
    run(story.reappraise())
    [it] = story.door.withdrawn
    assert it.admitted is before
    assert it.error.code == "appraisal-tcb-status"
    assert seen == [{}]
    assert story.out() == {"alice": "admission-withdrawn"}


def test_an_admission_ends_also_where_that_cannot_be_recorded(
    run: Run, story: Story
) -> None:
    story.door = FullDisk()
    publish(story.federation, out_of_date("tdx"))
    with pytest.raises(StorageError) as caught:
        run(story.reappraise())
    assert caught.value.code == "audit-unwritable"
    assert story.out() == {"alice": "admission-withdrawn"}
    assert len(story.log.named("admission-withdrawn")) == 1


class Overtaken(CollateralFiles):
    """Collateral that something happens before, when it is asked for first."""

    def __init__(self, federation: Federation, happens: Callable[[], None]) -> None:
        super().__init__(federation.root.directory)
        self._happens: Callable[[], None] | None = happens

    @override
    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> Collateral:
        if happens := self._happens:
            self._happens = None
            happens()
        return super().collateral_for(tee=tee, fmspc=fmspc, ca=ca)


def test_who_renewed_meanwhile_is_not_out_for_former_evidence(
    run: Run, story: Story
) -> None:
    def renew() -> None:
        story.enrol(story.nodes["alice"])
        publish(story.federation, out_of_date("tdx"))

    judge = story.server.appraiser
    source = Overtaken(story.federation, renew)
    overtaken = replace(story.server, appraiser=replace(judge, collateral=source))
    run(reappraise(overtaken, story.table, audit=story.door, log=story.log.logger()))
    assert (story.out(), story.door.withdrawn, story.log.events) == ({}, [], [])
    # The next time it is about the evidence of today.
    run(story.reappraise())
    assert story.out() == {"alice": "admission-withdrawn"}
