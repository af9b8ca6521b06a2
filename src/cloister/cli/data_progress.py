"""What a person sees while records are sealed or checked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Without a terminal a line comes this often.
_LINE_SECONDS = 5.0


@contextlib.contextmanager
def showing_records(
    what: str, *, total: int | None, console: Console
) -> Iterator[Callable[[int], None]]:
    """Gives what is told how many records are done: a bar moves, or lines are written.

    Args:
        what: What is done with them.
        total: Records in all; None where nobody knows it yet.
        console: Where it goes; a bar only on a terminal.
    """
    if not console.is_terminal:
        yield _Lines(what, total, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda done: progress.update(bar, completed=done)


class _Lines:
    """For a pipe or a file: a line now and then, none for what is done at once."""

    def __init__(self, what: str, total: int | None, console: Console) -> None:
        self._what = what
        self._total = total
        self._console = console
        self._last: float | None = None

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        waits = self._last is not None and now - self._last < _LINE_SECONDS
        if waits or done == self._total:
            return
        self._last = now
        of = "" if self._total is None else f" of {self._total}"
        self._console.print(f"{self._what}: {done}{of} records", soft_wrap=True)
