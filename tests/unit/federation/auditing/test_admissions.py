from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import WARRANT_LIFE
from tests.support.made_audit import AuditedRun, audited_federation, code_of_log

from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    NodeAdmitted,
    NodeRefused,
    RefusalsCounted,
)
from cloister.plan.plan import Role
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import new_identity
from cloister.ratls.testimony import Testimony
from cloister.ratls.warrant import sign_warrant


@pytest.fixture
def run(tmp_path: Path) -> AuditedRun:
    made = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    made.begin()
    return made


def code(run: AuditedRun) -> str:
    return code_of_log(run.path.read_bytes())


def admission(run: AuditedRun, party: str = "alice") -> NodeAdmitted:
    """Returns the last record of a party's admission."""
    return [
        entry
        for entry in run.entries()
        if isinstance(entry, NodeAdmitted)
        and entry.testimony.said.client_party == party
    ][-1]


def without_last(run: AuditedRun) -> NodeAdmitted:
    """Takes the last admission out of the log and returns it, to be told otherwise."""
    entry = admission(run)
    run.log.close()
    lines = run.path.read_bytes().splitlines(keepends=True)
    run.path.write_bytes(b"".join(lines[:-1]))
    return entry


def told(run: AuditedRun, entry: NodeAdmitted, **changes: object) -> str:
    """Returns what an admission told otherwise is found to be."""
    changed = msgspec.structs.replace(entry, **changes)
    return code_of_log(run.lied(changed, at=timedelta(0)))


def showing(testimony: Testimony, **changes: object) -> Testimony:
    found: Testimony = msgspec.structs.replace(testimony, **changes)
    return found


def test_every_field_of_an_admission_is_pinned(run: AuditedRun) -> None:
    run.admit("alice")
    entry = without_last(run)
    testimony, said = entry.testimony, entry.testimony.said
    assert told(run, entry) == "holds"
    other = new_identity()
    for field, value in (
        ("run_id", "blobs/b"),
        ("plan_hash", bytes(32)),
        ("client_role", "server"),
        ("client_party", "bob"),
        ("server_role", "custodian"),
        ("server_party", "bob"),
        ("client_nonce", bytes(32)),
        ("server_nonce", bytes(32)),
        ("client_key", other.tls_spki),
        ("server_key", other.tls_spki),
        ("admission_key", other.tls_spki),
        ("client_encryption_key", bytes(32)),
        ("server_encryption_key", bytes(32)),
    ):
        words = msgspec.structs.replace(said, **{field: value})
        got = told(run, entry, testimony=showing(testimony, said=words))
        assert got.startswith("audit-"), field
    for changes in (
        {"warrant": None},
        {"proof": None},
        {"collateral": None},
        {"collateral": "0" * 64},
    ):
        assert told(run, entry, testimony=showing(testimony, **changes)).startswith(
            "audit-"
        )
    assert told(run, entry, verdict={**entry.verdict, "tee": "sgx"}) == "audit-verdict"
    assert told(run, entry, verdict={}) == "audit-verdict"
    assert told(run, entry, expires_at=entry.expires_at + 2) == "audit-expiry"
    assert told(run, entry, last_round=entry.last_round + 1) == "audit-expiry"
    # Shorter is the server's own business.
    assert told(run, entry, expires_at=entry.expires_at - 1) == "holds"
    assert told(run, entry, last_round=1) == "holds"


def test_a_node_that_spoke_with_another_server_is_not_admitted_here(
    run: AuditedRun,
) -> None:
    run.admit("alice")
    entry = admission(run)
    run.log.close()
    run.begin(epoch=2)
    run.lie(entry)
    assert code(run) == "audit-met"


def test_the_same_evidence_admits_once(run: AuditedRun) -> None:
    run.admit("alice")
    run.lie(admission(run))
    assert code(run) == "audit-replayed"


def test_a_partys_older_node_does_not_come_back(run: AuditedRun) -> None:
    run.admit("alice", epoch=2)
    old = run.federation.node("alice", clock=run.clock, epoch=1)
    with pytest.raises(VerificationError):
        run.admit("alice", node=old)
    run.log.close()
    # Nor after a restart, when the server has forgotten.
    run.begin(epoch=2)
    run.admit("alice", node=old)
    assert code(run) == "audit-epoch-old"


def test_a_second_node_of_one_epoch_is_found(run: AuditedRun) -> None:
    run.admit("alice", epoch=1)
    run.log.close()
    run.begin(epoch=2)
    run.admit("alice", epoch=1)
    assert code(run) == "audit-epoch-forked"


def test_an_admission_ends_with_its_warrant(run: AuditedRun) -> None:
    node = run.federation.node("alice", clock=run.clock)
    run.clock.forward(WARRANT_LIFE - timedelta(hours=1))
    # The server's own warrant would end as well.
    terms = msgspec.structs.replace(
        run.server.warrant.current.terms,
        expires_at=int((run.clock() + WARRANT_LIFE).timestamp()),
    )
    run.server.warrant.renew(sign_warrant(terms, run.federation.keys["aggregator"]))
    run.log.warrant_renewed(run.server.warrant.current)
    run.admit("alice", node=node)
    entry = without_last(run)
    warrant = entry.testimony.warrant
    assert warrant is not None
    assert entry.expires_at == warrant.terms.expires_at
    assert told(run, entry, expires_at=entry.expires_at + 1) == "audit-expiry"


def test_a_renewal_is_told_from_a_new_node(run: AuditedRun) -> None:
    node = run.admit("alice")
    run.admit("alice", node=node)
    run.admit("alice", epoch=2)
    seen = run.verify().admissions
    assert [(it.epoch, it.renewed) for it in seen] == [
        (1, False),
        (1, True),
        (2, False),
    ]


def withdrawn(run: AuditedRun, party: str) -> AdmissionWithdrawn:
    return AdmissionWithdrawn(
        party=party,
        tls_key_sha256=key_digest(run.workers[party].identity.tls_spki).hex(),
        code="revoked",
        reason="its platform was revoked",
    )


def test_who_was_withdrawn_takes_no_further_part(run: AuditedRun) -> None:
    run.admit_all()
    run.train(1)
    run.lie(withdrawn(run, "alice"))
    assert run.verify().counted.withdrawals == 1
    before = run.path.read_bytes()
    # Twice, or of somebody else, it cannot be.
    run.lie(withdrawn(run, "alice"))
    assert code(run) == "audit-withdrawn"
    run.path.write_bytes(before)
    run.lie(msgspec.structs.replace(withdrawn(run, "bob"), party="carol"))
    assert code(run) == "audit-withdrawn"


@pytest.mark.parametrize(
    ("role", "party", "expected"),
    [
        ("worker", "alice", "holds"),
        ("server", "aggregator", "holds"),
        ("server", "alice", "audit-refusal"),
        ("worker", "carol", "audit-refusal"),
    ],
)
def test_a_refusal_names_somebody_of_the_plan(
    run: AuditedRun, role: Role, party: str, expected: str
) -> None:
    run.lie(
        NodeRefused(
            role=role,
            party=party,
            where="training",
            code="update-round",
            reason="of another round",
            testimony=None,
        )
    )
    assert code(run) == expected


def test_refusals_are_counted_and_not_judged(run: AuditedRun) -> None:
    run.admit("alice")
    refused = NodeRefused(
        role="worker",
        party="alice",
        where="enrolment",
        code="report-data",
        reason="made for something else",
        # What was refused may be anything.
        testimony=showing(admission(run).testimony, proof=None),
    )
    run.lie(refused, RefusalsCounted(party="alice", count=5), refused)
    counted = run.verify().counted
    assert (counted.refusals, counted.refusals_unrecorded) == (2, 5)
    run.lie(RefusalsCounted(party="carol", count=5))
    assert code(run) == "audit-refusal"
