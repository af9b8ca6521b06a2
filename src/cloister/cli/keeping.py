"""Keeps one process of a run alive: whatever kills it, it is started again.

A node goes on from the state that it kept, and a custodian from its database, so a
process that was killed costs time and nothing else. One that ends by itself has said
why, and is not started again. Nor is one that is killed again and again while the run
comes no further: then the machine, or a bug, kills it.

What this module does not do: look after processes that stand still. Whoever stopped one
(SIGSTOP) may let it go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from cloister.cli.exit_codes import ExitCode
from cloister.cli.processes import Event, Member, Printing, RunOutcome, stop_members

MOST_DEATHS = 5
_PAUSE_SECONDS = 0.25


class Deaths:
    """How often processes were killed since the run last came further."""

    def __init__(self) -> None:
        self._round = 0
        self._counts: Counter[str] = Counter()

    def hear(self, event: Event) -> None:
        """Takes one event; a round that was not trained before pardons everybody."""
        number = event.get("round")
        if event.get("event") != "round" or not isinstance(number, int):
            return
        # One that is trained again after a restart is no progress.
        if number > self._round:
            self._round = number
            self._counts.clear()

    def count(self, name: str) -> int:
        """Counts one death; returns how many it is for that process."""
        self._counts[name] += 1
        return self._counts[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Which process of a run.

    Attributes:
        name: Who it is, to the user.
        service: What it does: ``server``, ``worker`` or ``custodian``.
        start: Starts it; given the kinds of events that earlier ones said.
        always: What stands in each of its events.
        prints: What becomes of what its task prints.
    """

    name: str
    service: str
    start: Callable[[frozenset[str]], Awaitable[Member]]
    always: Mapping[str, str] = field(default_factory=dict)
    prints: Printing = "unheard"


class KeptProcess:
    """One process of a run, and those that took its place.

    Args:
        role: Which.
        on_event: Told of every event, and of each restart (``restarted``).
        deaths: Counts for all processes of the run.
        pause_seconds: Before the first restart; twice as long before each next one.

    Attributes:
        role: Which.
        restarts: How often it was started again.
        current: The one that was started last; None before the first.
    """

    def __init__(
        self,
        role: Role,
        *,
        on_event: Callable[[Event], None],
        deaths: Deaths,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self.role = role
        self.restarts = 0
        self.current: Member | None = None
        self._on_event = on_event
        self._deaths = deaths
        self._pause_seconds = pause_seconds
        self._said: dict[str, asyncio.Event] = {}
        self._stopping = asyncio.Event()

    def said(self, kind: str) -> asyncio.Event:
        """Returns what is set when the process, or an earlier one, says an event."""
        return self._said.setdefault(kind, asyncio.Event())

    async def keep(self) -> RunOutcome:
        """Returns how the process ended that was not started again.

        Raises:
            PlatformError: If one cannot be started.
        """
        while True:
            member = self.current = await self.role.start(self._heard())
            if self._stopping.is_set():
                await stop_members([member])
            outcome = await member.follow(
                self._take, prints=self.role.prints, **self.role.always
            )
            if outcome.signal is None or self._stopping.is_set():
                return outcome
            died = self._deaths.count(self.role.name)
            if died == MOST_DEATHS:
                return _given_up(outcome, died)
            await self._pause(died)
            if self._stopping.is_set():
                return outcome
            self.restarts += 1
            told = {"event": "restarted", "service": self.role.service}
            self._take({**told, "signal": outcome.signal, **self.role.always})

    def let_go(self) -> None:
        """Has the process not be started again from now on."""
        self._stopping.set()

    def _heard(self) -> frozenset[str]:
        return frozenset(kind for kind, said in self._said.items() if said.is_set())

    def _take(self, event: Event) -> None:
        self.said(str(event.get("event"))).set()
        self._deaths.hear(event)
        self._on_event(event)

    async def _pause(self, died: int) -> None:
        seconds = self._pause_seconds * 2 ** (died - 1)
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


async def stop_kept(processes: Iterable[KeptProcess]) -> None:
    """Stops processes for good: politely first."""
    kept = list(processes)
    for process in kept:
        process.let_go()
    await stop_members(it.current for it in kept if it.current is not None)


def _given_up(outcome: RunOutcome, died: int) -> RunOutcome:
    words: Event = {
        "event": "failed",
        "code": "node-died",
        "what": f"was killed {died} times without a new round in between, at last by"
        f" {outcome.signal}",
        "expected": "a process that ends by itself",
        "got": outcome.stderr.strip()[-2000:],
        "remedy": "The kernel's log says whether memory ran out.",
    }
    return replace(outcome, code=ExitCode.PLATFORM, failure=words)
