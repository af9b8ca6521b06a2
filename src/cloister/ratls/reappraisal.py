"""Judges admitted peers again when collateral changes: a TCB recovery, a revocation.

Evidence that was good at admission need not stay so. The server keeps each peer's
evidence and verifies it anew, with the collateral of the day, as long as it runs.
"""

from __future__ import annotations

import asyncio

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, VerificationError
from cloister.ratls.admission_table import AdmissionTable, Admitted
from cloister.ratls.audit import DoorAudit
from cloister.ratls.node import Node

# Collateral changes some times a month; a platform that was revoked should not stay
# for long, and one verification takes milliseconds.
REAPPRAISAL_SECONDS = 600.0


async def keep_reappraising(
    node: Node,
    table: AdmissionTable,
    *,
    audit: DoorAudit,
    log: FilteringBoundLogger,
    every_seconds: float = REAPPRAISAL_SECONDS,
) -> None:
    """Reappraises every admitted peer at intervals, until cancelled.

    Raises:
        StorageError: If an admission's end cannot be recorded.
    """
    while True:
        await asyncio.sleep(every_seconds)
        await reappraise(node, table, audit=audit, log=log)


async def reappraise(
    node: Node, table: AdmissionTable, *, audit: DoorAudit, log: FilteringBoundLogger
) -> None:
    """Verifies and appraises the evidence of every admitted peer once more.

    A peer whose evidence no longer holds is out from then on, until it attests again.
    Where collateral cannot be had, nothing changes: admissions end with the collateral
    that they were made with.

    Raises:
        StorageError: If an admission's end cannot be recorded; it ends all the same.
    """
    for admitted in table.admitted():
        if admitted.quote is None or admitted.withdrawn is not None:
            continue
        try:
            # In a thread: collateral may have to be fetched.
            await asyncio.to_thread(_appraise, node, admitted, admitted.quote)
        except VerificationError as error:
            _withdraw(table, admitted, error, audit=audit, log=log)
        except CloisterError as error:
            log.warning(
                "reappraisal-failed",
                peer=admitted.peer.party,
                code=error.code,
                reason=str(error),
            )


def _withdraw(
    table: AdmissionTable,
    admitted: Admitted,
    error: VerificationError,
    *,
    audit: DoorAudit,
    log: FilteringBoundLogger,
) -> None:
    if not any(line is admitted for line in table.admitted()):
        return  # renewed or replaced meanwhile: this is about former evidence
    try:
        audit.admission_withdrawn(admitted, error)
    finally:
        # Whether it can be recorded or not: nobody stays in for a full disk.
        table.withdraw(admitted, error)
        log.warning(
            "admission-withdrawn",
            peer=admitted.peer.party,
            code=error.code,
            reason=str(error),
        )


def _appraise(node: Node, admitted: Admitted, quote: bytes) -> None:
    node.appraise(
        quote, party=admitted.peer.party, expected_report_data=admitted.report_data
    )
