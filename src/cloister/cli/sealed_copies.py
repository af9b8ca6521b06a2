"""The sealed model that a recipient's node is given, and what the run's log says of it.

The seal does not say who sealed: whoever knows the recipient can. The audit log beside
the model does. It is verified as an auditor does, with the plan's hash as its anchor,
so all of it that counts here is signed by attested servers of this very plan.
"""

from __future__ import annotations

from pathlib import Path

from cloister.cli.audit_source import find_log
from cloister.cli.places import AUDIT_NAME, Place
from cloister.errors import ConfigError, VerificationError
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.recipient import SealedCopy
from cloister.plan.plan import plan_hash


def find_copy(place: Place, path: Path, *, for_records: bool) -> SealedCopy:
    """Returns a sealed model; no key is asked for before there is one.

    Args:
        place: Of the recipient's node.
        path: The sealed model.
        for_records: Whether it is to meet records. Then the run's log must name it; it
            lies in the same directory.

    Raises:
        ConfigError: If there is no model, or no log.
        VerificationError: If the log does not hold, or names no model.
        StorageError: If it is no log.
    """
    if not path.is_file():
        raise ConfigError(
            f"no sealed model {path}",
            code="model-missing",
            expected="the model of a run that has ended",
            remedy="Give its path with --model.",
        )
    if not for_records:
        return SealedCopy(path=path, recorded=None)
    return SealedCopy(
        path=path, recorded=_recorded(place, path.absolute().parent / AUDIT_NAME)
    )


def _recorded(place: Place, log: Path) -> str:
    """Returns the SHA-256 of the model that the run's log names."""
    if not log.is_file():
        raise ConfigError(
            f"no audit log {log}",
            code="audit-missing",
            expected="the run's audit log beside its model",
            remedy="Copy it there: a model meets records only if the log names it.",
        )
    anchors = Anchors(plan_hash=plan_hash(place.plan))
    report = verify_audit(find_log(log).links(), anchors=anchors)
    if report.seal is None:
        raise VerificationError(
            f"the log {log} names no sealed model",
            code="audit-model-unnamed",
            expected="the log of a run that has ended",
            got=f"{report.completed} rounds",
            remedy="Copy the run's whole log.",
        )
    return report.seal.sha256
