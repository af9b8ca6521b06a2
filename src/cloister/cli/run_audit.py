"""Opens the audit log of the run that a server's place is of."""

from __future__ import annotations

from cloister.cli.places import Place
from cloister.errors import ConfigError
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_start import open_audit
from cloister.plan.consent import check_consents, format_consent
from cloister.plan.plan import PlanHash
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node


def open_run_audit(
    node: Node, place: Place, *, known: Mark | None, known_under: PlanHash | None
) -> AuditLog:
    """Returns the run's audit log; the caller closes it.

    Args:
        node: The server's node, warranted.
        place: Where it finds its files.
        known: How far its party knows the run to be.
        known_under: The plan under which that was deposited.

    Raises:
        CloisterError: If the log cannot be used, is not this run's or was cut, or the
            plan and its consents are not what they were when the node was built.
    """
    consents = check_consents(place.plan, place.plan_path, at=node.clock())
    return open_audit(
        place.audit_path,
        node=node,
        consents=[format_consent(it) for it in consents.by_party.values()],
        plan_text=_plan_text(place),
        known=known,
        known_under=known_under,
    )


def _plan_text(place: Place) -> bytes:
    try:
        return place.plan_path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "cannot read the plan",
            code="file-unreadable",
            expected=f"a readable file at {place.plan_path}",
            got=error.strerror or "an error",
        ) from error
