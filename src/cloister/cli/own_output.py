"""What a node itself says on its standard output, apart from what its task prints.

A task is code in the node's own process, so it can print whatever it likes, also what
looks like an event of the node's. So the node takes its standard output for itself
before there is a task, and what is then printed goes somewhere else:

- of an attested node, nowhere. It runs among others' eyes, whoever started it.
- of an owner's own node with ``--json``, into events `printed`, which the node makes.
- of an owner's own node without it, to the terminal, as ever.

This keeps a task's words from being taken for the node's. It does not confine a task
that looks for the node's output on purpose; nothing does (`docs/threat-model.md`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from structlog.typing import FilteringBoundLogger

from cloister.cli.line_cutter import LineCutter, printable
from cloister.errors import PlatformError
from cloister.plan.plan import Party

Prints = Literal["nowhere", "as-events", "as-they-are"]
"""What becomes of what is printed in a process."""

MAX_PRINTED_BYTES = 1024
PRINTED = "printed"
_STDOUT = 1
# For what was printed last; only a process that the task left behind keeps it waiting.
_DRAIN_SECONDS = 5.0


def prints_of(party: Party, *, as_json: bool) -> Prints:
    """Returns what becomes of what the task of a party's node prints."""
    if party.admit != "identity":
        return "nowhere"
    return "as-events" if as_json else "as-they-are"


class OwnOutput:
    """The standard output that this process was started with; of any thread.

    Raises:
        PlatformError: If there is none.
    """

    def __init__(self) -> None:
        try:
            self._number = os.dup(_STDOUT)
        except OSError as error:
            raise PlatformError(
                "there is no standard output",
                code="output-unwritable",
                got=error.strerror or "an error",
            ) from error
        self._turn = threading.Lock()

    def say(self, line: str) -> None:
        """Writes one line, whole."""
        content = line.encode() + b"\n"
        with self._turn:
            while content:
                content = content[os.write(self._number, content) :]

    def close(self) -> None:
        """Gives it up."""
        os.close(self._number)


@contextmanager
def prints_apart(prints: Prints, log: FilteringBoundLogger) -> Iterator[None]:
    """Sends what is printed where it belongs, also after this has ended.

    Whoever has something to say on standard output makes his `OwnOutput` before.

    Args:
        prints: Where that is.
        log: Gets the events.
    """
    if prints == "as-they-are":
        yield
        return
    if prints == "nowhere":
        _print_to_nothing()
        yield
        return
    reader, writer = os.pipe()
    _flush()
    os.dup2(writer, _STDOUT)
    os.close(writer)
    # Into a pipe Python would print a page at a time.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    listener = threading.Thread(target=_tell, args=(reader, log), daemon=True)
    listener.start()
    try:
        yield
    finally:
        _print_to_nothing()  # which also ends the pipe
        listener.join(_DRAIN_SECONDS)


def _tell(reader: int, log: FilteringBoundLogger) -> None:
    """Makes an event of each line, until nobody has the other end of the pipe."""
    cutter = LineCutter(MAX_PRINTED_BYTES)
    heard = True
    while piece := os.read(reader, 4096):
        for line in cutter.feed(piece):
            # Who reads the events may have gone; a task is not to stand still for it.
            heard = heard and _tell_line(line, log)
    if heard:
        _tell_line(cutter.end(), log)
    os.close(reader)


def _tell_line(line: bytes, log: FilteringBoundLogger) -> bool:
    """Returns whether anybody may have heard it."""
    text = printable(line.decode(errors="replace"))
    if text:
        try:
            log.info(PRINTED, text=text)
        except OSError:
            return False
    return True


def _print_to_nothing() -> None:
    _flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, _STDOUT)
    os.close(nothing)


def _flush() -> None:
    # A task may have closed it, or put something else in its place.
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
