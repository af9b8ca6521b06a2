"""How errors and counts are put into records of the audit log."""

from __future__ import annotations

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.audit_records import (
    CODE_CHARACTERS,
    REASON_CHARACTERS,
    AnyEntry,
    RefusalsCounted,
)
from cloister.ratls.refusals import one_line


def counted(left_out: list[tuple[str, int]]) -> list[AnyEntry]:
    """Returns the records of refusals that were not recorded one by one.

    Args:
        left_out: Parties, and how many of each.
    """
    return [RefusalsCounted(party=party, count=count) for party, count in left_out]


def code_of(error: CloisterError) -> str:
    """Returns an error's code as a record has it."""
    return one_line(error.code)[:CODE_CHARACTERS]


def reason_of(error: CloisterError) -> str:
    """Returns what an error says as a record has it: one line, and no control codes."""
    return one_line(str(error))[:REASON_CHARACTERS]


def run_over() -> ProtocolError:
    """Returns the error for what comes after the last record of a run."""
    return ProtocolError(
        "the run is over",
        code="run-over",
        expected="nothing after the model is sealed",
    )
