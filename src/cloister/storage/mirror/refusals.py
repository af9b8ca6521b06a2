"""How a mirror is refused: one error for each reason, and what to do then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cloister.errors import StorageError

_UNUSABLE: Final = frozenset(
    {"mirror-damaged", "mirror-foreign", "mirror-key", "mirror-version"}
)


def damaged(path: Path, what: str) -> StorageError:
    """Returns the error for a mirror that does not open.

    Args:
        path: The file.
        what: Which part of it.
    """
    return StorageError(
        f"the state at {path} is damaged: {what}",
        code="mirror-damaged",
        expected="what the node sealed there, to the bit",
        remedy="Put the file back from an unaltered copy of its newest state, or begin"
        " the run anew with --fresh.",
    )


def foreign(path: Path, *, expected: str, got: str) -> StorageError:
    """Returns the error for another node's mirror, or one of other arrays."""
    return StorageError(
        f"the state at {path} is not this node's",
        code="mirror-foreign",
        expected=expected,
        got=got,
        remedy="Put the run's own file back, or begin the run anew with --fresh.",
    )


def other_key(path: Path) -> StorageError:
    """Returns the error for a mirror that is sealed under another key."""
    return StorageError(
        f"the state at {path} is sealed under another key than this node has",
        code="mirror-key",
        expected="the key that the node had when it wrote the state",
        remedy="A key that comes from the machine changes with the measurement and the"
        " machine: start the software that wrote the state, where it was written."
        " With state_share in the plan the key comes from custodians and stays.",
    )


def other_version(path: Path, got: str = "") -> StorageError:
    """Returns the error for a mirror of another format."""
    return StorageError(
        f"the state at {path} is of another format than this program's",
        code="mirror-version",
        expected="version 1",
        got=got,
        remedy="Finish the run with the version of Cloister that began it, or begin"
        " the run anew with --fresh.",
    )


@contextlib.contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Gives whoever opens a journal of parts the remedy for one that does not open.

    A run need not begin anew for it: a state that lies whole beside it is gone on
    from. Without the journal nobody knows whom the round after it was to be made of.

    Args:
        path: The journal.
    """
    try:
        yield
    except StorageError as error:
        if error.code in _UNUSABLE:
            error.remedy = (
                f"Put this very file back, or move {path} away: the round that was"
                " under way is then made of whoever comes, and its model may have"
                " other bits. Nothing else is lost."
            )
        raise
