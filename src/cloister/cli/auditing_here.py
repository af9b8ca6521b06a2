"""Audits a run whose custodians all lie here, as an auditor would with their heads."""

from __future__ import annotations

from pathlib import Path

from cloister.cli.audit_source import find_log
from cloister.cli.custodians import open_register
from cloister.cli.places import custodians_beside, read_custodian_place
from cloister.custody.audit_export import head_of_run, sign_head
from cloister.custody.party_key import read_party_key
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors, AuditReport
from cloister.plan.plan import Plan, plan_hash
from cloister.storage.dsse import Envelope, parse_envelope


def audit_here(plan: Plan, plan_path: Path, run_directory: Path) -> AuditReport:
    """Returns what the log of a run proves, held against the heads of all custodians.

    Args:
        plan: The plan.
        plan_path: Its file; the custodians lie beside it.
        run_directory: Holds the log.

    Raises:
        CloisterError: If the log does not hold, or a custodian knows nothing of it.
    """
    return verify_audit(
        find_log(run_directory).links(),
        anchors=Anchors(plan_hash=plan_hash(plan)),
        heads=[_head(path, plan.run_id) for path in custodians_beside(plan_path)],
    )


def _head(path: Path, run_id: str) -> Envelope:
    place = read_custodian_place(path)
    with open_register(place) as register:
        head = head_of_run(register, run_id)
    line = sign_head(head, key=read_party_key(place.key_path))
    return parse_envelope(line.removesuffix(b"\n"))
