"""What a person sees of a run: who is attested, how far training is, what it yields."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cloister.cli.line_cutter import printable
from cloister.cli.processes import Event
from cloister.cli.run_view import RunView, is_custodian
from cloister.plan.plan import Plan

SIMULATED_NOTICE = (
    "SIMULATED TEE: quotes come from software under a development root made for this"
    " deployment. Every check runs as on hardware, but nothing here is confidential."
)

# Without a terminal a line about the rounds comes this often.
_LINE_SECONDS = 5.0

# Of these a person reads a line each; of rounds now and then.
_LINES = frozenset(
    {
        "node-measured",
        "node-unmeasured",
        "waiting-for-custodian",
        "waiting-for-predecessor",
        "waiting-for-share",
        "server-attested",
        "server-lost",
        "peer-admitted",
        "finished",
    }
)


class Reporter(Protocol):
    """Shows events as they come; a context that lasts as long as the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __call__(self, event: Event) -> None:
        """Takes one event of one node."""
        ...


class LiveReporter:
    """For a terminal: a table of parties and a bar, redrawn in place."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._view = RunView(plan)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("rounds", total=plan.training.rounds)
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=4
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.refresh()
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Takes one event of one node."""
        if event.get("event") == "printed":
            _show_printed(event, self._live.console)
        elif said := restart_in_words(event):
            _show(said, self._live.console)
        self._view.take(event)
        self._progress.update(
            self._bar, completed=self._view.round, description=self._view.line()
        )

    def _draw(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for title in ("party", "role", "tee", "attested", "state"):
            table.add_column(title)
        for name, row in self._view.parties.items():
            table.add_row(name, row["role"], row["tee"], row["attested"], row["state"])
        return Group(table, self._progress)


class Unheld:
    """A reporter that holds nothing open while the run lasts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class LineReporter(Unheld):
    """For a pipe or a file: one line for each thing worth one."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._view = RunView(plan)
        self._console = console
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Takes one event of one node."""
        self._view.take(event)
        party, kind = event.get("party"), event.get("event")
        if said := restart_in_words(event):
            _show(said, self._console)
        if is_custodian(event):
            return
        if kind in _LINES:
            what = _short(event.get("measurements"))
            whom = event.get("peer", "")
            line = f"  {party}: {kind} {whom} {what}".rstrip()
            self._console.print(line, soft_wrap=True)
        elif kind == "printed":
            _show_printed(event, self._console)
        elif kind in {"round", "evaluation"} and self._is_server(party):
            self._rounds(kind == "evaluation")

    def _rounds(self, evaluated: bool) -> None:  # noqa: FBT001 - private
        now = time.monotonic()
        if evaluated or now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._console.print(f"  {self._view.line()}", soft_wrap=True)

    def _is_server(self, party: object) -> bool:
        return party == self._view.plan.server.name


class JsonReporter(Unheld):
    """For machines: every event as it came."""

    def __init__(self, write: Sink) -> None:
        self._write = write

    def __call__(self, event: Event) -> None:
        """Takes one event of one node."""
        self._write(event)


class Sink(Protocol):
    """Writes one JSON object."""

    def __call__(self, value: Event, /) -> None:
        """Writes it."""
        ...


def reporter_for(plan: Plan, console: Console) -> Reporter:
    """Returns what suits where `console` goes."""
    if console.is_terminal:
        return LiveReporter(plan, console)
    return LineReporter(plan, console)


def restart_in_words(event: Event) -> str:
    """Returns what a person reads of a process, or a run, that goes on; else nothing.

    Also of a custodian: whoever sees a restart is to know what was killed.
    """
    match event.get("event"):
        case "restarted":
            said = f"killed by {event.get('signal')}, started again"
        case "state-resumed":
            said = f"resuming after round {event.get('round')}"
        case "mirror-volatile":
            said = (
                "keeps its state where a power cut ends it; [mirror] directory in"
                " site.toml names another place"
            )
        case "set-aside":
            said = f"set aside {event.get('path')}"
        case "state-not-kept":
            said = f"could not keep its newest state: {event.get('reason')}"
        case "server-changed":
            said = f"goes on with a new server in round {event.get('next_round')}"
        case _:
            return ""
    who = f"{'custodian of ' if is_custodian(event) else ''}{event.get('party')}"
    return f"{who}: {printable(said)}"


def _show_printed(event: Event, console: Console) -> None:
    """Shows what the task of an owner's own node printed."""
    _show(f"{event.get('party')}: {printable(str(event.get('text', '')))}", console)


def _show(line: str, console: Console) -> None:
    """Shows a line as it is: what is in brackets is no style."""
    console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _short(measurements: object) -> str:
    """Returns measurements short enough for a line; the log has them whole."""
    if not isinstance(measurements, dict):
        return ""
    return "  ".join(f"{name} {str(v)[:16]}..." for name, v in measurements.items())
