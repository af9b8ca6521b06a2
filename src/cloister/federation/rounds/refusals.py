"""How a message that does not count is refused: with a code and public values."""

from __future__ import annotations

from typing import Final

from cloister.errors import ProtocolError

# What means no more than that the sender should ask for the current model: others were
# faster. The audit has no record of it.
NO_FAULT: Final = frozenset({"update-late", "model-superseded", "transfer-slow"})

ASK_AGAIN = "Ask for the current model."


def refusal(
    party: str, code: str, *, expected: str, got: str, remedy: str = ""
) -> ProtocolError:
    """Returns the error for a party's message that does not count."""
    return ProtocolError(
        f"a message of {party!r} does not count",
        code=code,
        expected=expected,
        got=got,
        remedy=remedy,
    )


def late(round_number: int) -> ProtocolError:
    """Returns the error for an update whose round has closed; it is nobody's fault."""
    return ProtocolError(
        f"round {round_number} closed without this update",
        code="update-late",
        expected=f"an update before round {round_number} closes",
        remedy=ASK_AGAIN,
    )
