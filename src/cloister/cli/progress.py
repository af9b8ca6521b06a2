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

from cloister.cli.launcher import Event
from cloister.plan.plan import Plan

SIMULATED_NOTICE = (
    "SIMULATED TEE: quotes come from software under a development root made for this"
    " deployment. Every check runs as on hardware, but nothing here is confidential."
)

# Without a terminal a line about the rounds comes this often.
_LINE_SECONDS = 5.0

_STATES = {
    "node-measured": "measured",
    "waiting-for-server": "waiting for the server",
    "listening": "listening",
    "server-attested": "attested the server",
    "round": "training",
    "finished": "finished",
    "model-sealed": "sealed the model",
    "failed": "failed",
    "interrupted": "stopped",
}


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


class RunView:
    """The state of a run, built from the nodes' events."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.parties: dict[str, dict[str, str]] = {
            p.name: {"role": p.role, "tee": "", "state": "starting", "attested": ""}
            for p in plan.party
        }
        self.round = 0
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.evaluated_round = 0
        self.bytes_moved = 0

    def take(self, event: Event) -> None:
        """Takes one event of one node."""
        name, kind = str(event.get("party")), str(event.get("event"))
        row = self.parties.get(name)
        if row is None:
            return
        if kind == "peer-admitted":
            admitted = self.parties.get(str(event.get("peer")))
            if admitted is not None:
                admitted["attested"] = "by " + name
            return
        if kind == "server-attested":
            self.parties[self.plan.server.name]["attested"] = "by all workers"
        if kind == "node-measured":
            simulated = " (simulated)" if event.get("simulated") else ""
            row["tee"] = f"{event.get('tee')}{simulated}"
        row["state"] = _STATES.get(kind, row["state"])
        if row["role"] == "server":
            self._take_training(kind, event)

    def _take_training(self, kind: str, event: Event) -> None:
        if kind == "round":
            self.round = int(_number(event, "round"))
            self.loss = _number(event, "loss")
            self.bytes_moved = int(
                _number(event, "bytes_received") + _number(event, "bytes_sent")
            )
        elif kind == "evaluation":
            metrics = event.get("metrics")
            if isinstance(metrics, dict):
                self.metrics = {str(k): float(v) for k, v in metrics.items()}
                self.evaluated_round = int(_number(event, "round"))

    def line(self) -> str:
        """Returns the state of training in one line."""
        parts = [f"round {self.round}/{self.plan.training.rounds}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if "accuracy" in self.metrics:
            parts.append(
                f"held-out accuracy {self.metrics['accuracy']:.4f}"
                f" (round {self.evaluated_round})"
            )
        parts.append(f"{self.bytes_moved / 1e6:.0f} MB moved")
        return "  ".join(parts)


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


class _Unheld:
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


class LineReporter(_Unheld):
    """For a pipe or a file: one line for each thing worth one."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self._view = RunView(plan)
        self._console = console
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Takes one event of one node."""
        self._view.take(event)
        party, kind = event.get("party"), event.get("event")
        if kind in {"node-measured", "server-attested", "peer-admitted", "finished"}:
            what = _short(event.get("measurements"))
            whom = event.get("peer", "")
            line = f"  {party}: {kind} {whom} {what}".rstrip()
            self._console.print(line, soft_wrap=True)
        elif kind in {"round", "evaluation"} and self._is_server(party):
            self._rounds(kind == "evaluation")

    def _rounds(self, evaluated: bool) -> None:  # noqa: FBT001 - private
        now = time.monotonic()
        if evaluated or now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            self._console.print(f"  {self._view.line()}", soft_wrap=True)

    def _is_server(self, party: object) -> bool:
        return party == self._view.plan.server.name


class JsonReporter(_Unheld):
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


def _short(measurements: object) -> str:
    """Returns measurements short enough for a line; the log has them whole."""
    if not isinstance(measurements, dict):
        return ""
    return "  ".join(f"{name} {str(v)[:16]}..." for name, v in measurements.items())


def _number(event: Event, key: str) -> float:
    value = event.get(key)
    return value if isinstance(value, int | float) else 0.0
