"""A machine is broken open; Intel says so, and its owner goes on training.

What was fetched about it when it was admitted is good for weeks. The server asks again
every hour, and the owner is out at the next reappraisal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.audit import RecordedDoor
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.meeting import Meeting
from tests.support.published_collateral import publish, revoking
from tests.support.recorded_log import RecordedLog
from tests.support.refusals import code_of
from tests.support.running import Run
from tests.unit.attestation.pcs_servers import ChangingPccs, Pccs

from cloister.attestation.pcs import CollateralService, PcsClient, PcsSettings
from cloister.attestation.pcs_freshness import MAX_AGE
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.node import Node
from cloister.ratls.reappraisal import REAPPRAISAL_SECONDS, reappraise

WEEK = timedelta(days=7)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    """A federation whose collateral these tests may replace."""
    return make_federation(tmp_path)


@pytest.fixture
def pccs(federation: Federation, clock: HandClock) -> Iterator[Pccs]:
    """The service that the server asks."""
    running = Pccs(
        ChangingPccs(federation.root, clock=clock), federation.root.directory
    )
    yield running
    running.close()


@pytest.fixture
def server(
    federation: Federation, clock: HandClock, pccs: Pccs, tmp_path: Path
) -> Iterator[Node]:
    node = federation.node("aggregator", clock=clock)
    with PcsClient(
        PcsSettings(
            service=CollateralService(address=pccs.address), ca_file=pccs.ca_file
        ),
        root=federation.root.trust_root,
        cache_directory=tmp_path / "cache",
        clock=clock,
    ) as source:
        yield replace(node, appraiser=replace(node.appraiser, collateral=source))


def admitted(table: AdmissionTable) -> list[str]:
    return [it.peer.party for it in table.admitted() if it.withdrawn is None]


def test_a_revoked_machine_is_out_within_the_hour(
    run: Run, federation: Federation, clock: HandClock, server: Node
) -> None:
    table, log = AdmissionTable(server.clock), RecordedLog()
    bob = federation.node("bob", clock=clock)
    for node in (bob, federation.node("alice", clock=clock)):
        Meeting(server, node, table=table).finish()
    [quote] = [it.quote for it in table.admitted() if it.peer.party == "bob"]
    assert quote is not None

    async def hour() -> None:
        """Reappraises as often as a server does in an hour."""
        for _ in range(int(MAX_AGE.total_seconds() / REAPPRAISAL_SECONDS)):
            clock.forward(timedelta(seconds=REAPPRAISAL_SECONDS))
            await reappraise(server, table, audit=RecordedDoor(), log=log.logger())

    run(hour())
    assert admitted(table) == ["bob", "alice"]
    publish(federation, revoking("sgx", quote))
    run(hour())
    assert admitted(table) == ["alice"]
    [line] = log.named("admission-withdrawn")
    assert (line["peer"], line["code"]) == ("bob", "certificate-revoked")
    assert code_of(lambda: table.check(bob.identity.tls_spki)) == "admission-withdrawn"
    # Nor does it come in again.
    again = federation.node("bob", clock=clock, epoch=2)
    meeting = Meeting(server, again, table=table)
    assert code_of(meeting.finish) == "certificate-revoked"


def test_a_service_that_is_gone_throws_nobody_out(
    run: Run, federation: Federation, clock: HandClock, server: Node, pccs: Pccs
) -> None:
    """Otherwise whoever can stop the service could stop every run."""
    table, log = AdmissionTable(server.clock), RecordedLog()
    Meeting(server, federation.node("bob", clock=clock), table=table).finish()
    pccs.answers.fail()
    clock.forward(WEEK)
    run(reappraise(server, table, audit=RecordedDoor(), log=log.logger()))
    assert admitted(table) == ["bob"]
    assert log.events == []
