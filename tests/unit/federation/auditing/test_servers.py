from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import WARRANT_LIFE, rewarranted
from tests.support.made_audit import AuditedRun, audited_federation, code_of_log

from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    AnyEntry,
    ServerIntroduced,
    WarrantRenewed,
)
from cloister.ratls.audit_key import AuditKey, audit_key_report_data
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.warrant import Warrant, WarrantTerms, sign_warrant


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    return AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")


def code(run: AuditedRun) -> str:
    return code_of_log(run.path.read_bytes())


def introduction(run: AuditedRun) -> ServerIntroduced:
    found = run.entries()[2]
    assert isinstance(found, ServerIntroduced)
    return found


def replayed(run: AuditedRun, **changes: object) -> str:
    """Writes the log's beginning once more, with another introduction."""
    opening, collateral, _ = run.entries()[:3]
    changed: AnyEntry = msgspec.structs.replace(introduction(run), **changes)
    run.path.unlink()
    return code_of_log(run.lied(opening, collateral, changed, at=timedelta(0)))


def test_each_field_of_an_introduction_is_pinned(run: AuditedRun) -> None:
    run.begin()
    other = new_identity()
    assert code(run) == "holds"
    for changes, expected in (
        ({"admission_key": other.tls_spki}, "audit-report-data"),
        ({"encryption_key": other.encryption_public}, "audit-report-data"),
        ({"quote": introduction(run).quote[:-1]}, None),
        ({"collateral": "0" * 64}, "audit-collateral"),
        ({"completed": 1}, "audit-round"),
        ({"restart": True}, "audit-restart"),
    ):
        before = run.path.read_bytes()
        got = replayed(run, **changes)
        assert got != "holds", changes
        assert expected in (None, got)
        run.path.write_bytes(before)
    # What nothing else says is the server's word alone.
    assert replayed(run, state=bytes(32)) == "holds"


def warrant_of(run: AuditedRun, key: str = "aggregator", **terms: object) -> Warrant:
    changed: WarrantTerms = msgspec.structs.replace(
        run.server.warrant.current.terms, **terms
    )
    return sign_warrant(changed, run.federation.keys[key])


def test_a_server_without_its_partys_warrant_is_refused(run: AuditedRun) -> None:
    run.begin()
    before = run.path.read_bytes()
    for warrant, expected in (
        (warrant_of(run, "alice"), "audit-warrant-signature"),
        (warrant_of(run, run_id="blobs/b"), "audit-warrant-foreign"),
        (warrant_of(run, plan_hash=bytes(32)), "audit-warrant-foreign"),
        (warrant_of(run, role="worker"), "audit-warrant-foreign"),
        (warrant_of(run, party="alice"), "audit-warrant-foreign"),
        (warrant_of(run, issued_at=0, expires_at=1), "audit-warrant-expired"),
        # The evidence names the epoch.
        (warrant_of(run, epoch=2), "audit-report-data"),
        # The warrant names the key that signs.
        (warrant_of(run, tls_key=new_identity().tls_spki), "audit-signature"),
        (warrant_of(run, tls_key=bytes(91)), "audit-signature"),
    ):
        assert replayed(run, warrant=warrant) == expected
        run.path.write_bytes(before)


def test_a_server_with_other_code_is_refused(run: AuditedRun) -> None:
    """Its own plan refuses it at once, so an honest one does not get so far."""
    run.begin()
    key = AuditKey(
        run_id=run.federation.plan.run_id,
        plan_hash=run.server.plan_hash,
        party="aggregator",
        epoch=1,
        tls_key=run.server.identity.tls_spki,
        admission_key=Spki(introduction(run).admission_key),
        encryption_key=run.server.identity.encryption_public,
        previous_head=bytes.fromhex(run.links()[2].previous),
    )
    # Bob's machine is of the same kind; what runs there is a worker.
    quote = run.federation.platform("bob").quote(audit_key_report_data(key))
    assert replayed(run, quote=quote) == "audit-appraisal-measurement"


def test_epochs_rise_from_server_to_server(run: AuditedRun) -> None:
    run.begin(epoch=2)
    run.log.close()
    for epoch in (1, 2):
        before = run.path.read_bytes()
        # An honest one does not open the log.
        with pytest.raises(VerificationError):
            run.begin(epoch=epoch)
        run.begin(epoch=3, shown_epoch=epoch)
        run.log.close()
        assert code(run) == "audit-epoch"
        run.path.write_bytes(before)
    run.begin(epoch=7)
    run.log.close()
    assert [it.skipped for it in run.verify().servers] == [1, 4]


def test_a_renewed_warrant_is_held_against_the_servers_key(run: AuditedRun) -> None:
    run.begin()
    for warrant, expected in (
        (warrant_of(run, "alice"), "audit-warrant-signature"),
        (warrant_of(run, epoch=2), "audit-epoch"),
        (warrant_of(run, tls_key=new_identity().tls_spki), "audit-warrant-foreign"),
    ):
        before = run.path.read_bytes()
        run.lie(WarrantRenewed(warrant=warrant))
        assert code(run) == expected
        run.path.write_bytes(before)


def test_a_server_whose_warrant_has_ended_completes_no_round(run: AuditedRun) -> None:
    run.begin()
    run.clock.forward(WARRANT_LIFE - timedelta(minutes=30))
    run.admit_all()
    run.train(1)
    assert code(run) == "holds"
    run.clock.forward(timedelta(minutes=50))
    run.train(2)
    assert code(run) == "audit-warrant-expired"


def test_a_server_whose_warrant_has_ended_seals_nothing(run: AuditedRun) -> None:
    run.begin()
    run.clock.forward(WARRANT_LIFE - timedelta(minutes=30))
    run.admit_all()
    run.train()
    run.clock.forward(timedelta(minutes=50))
    run.seal()
    assert code(run) == "audit-warrant-expired"


def test_a_renewed_warrant_carries_the_server_on(run: AuditedRun) -> None:
    run.begin()
    run.clock.forward(WARRANT_LIFE / 2)
    now = int(run.clock().timestamp())
    renewed = rewarranted(
        run.federation,
        run.server,
        issued_at=now,
        expires_at=now + int(WARRANT_LIFE.total_seconds()),
    ).warrant.current
    run.log.warrant_renewed(renewed)
    run.server.warrant.renew(renewed)
    run.clock.forward(WARRANT_LIFE * 3 / 4)
    run.admit_all()
    run.train(1)
    report = run.verify()
    assert report.completed == 1
    said = {it.what: int(it.at.timestamp()) for it in report.signed_times}
    assert said["a warrant of 'aggregator'"] == now
