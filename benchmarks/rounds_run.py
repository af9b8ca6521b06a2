"""A measured run and the bare sockets beside it: both train in bursts when told to."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rounds_processes import Memory, Process, free_ports
from rounds_raw import write_certificates
from rounds_scene import Settings, prepare_run, worker_names
from rounds_task import Size
from scene import SERVER

_NODE, _RAW = "rounds_node.py", "rounds_raw.py"
_START_SECONDS = 300.0
_ROUND_SECONDS = 120.0
_ENDLESS = 100_000


class Bursts(Protocol):
    """Something that does rounds when told to."""

    def burst(self) -> list[float]:
        """Does some rounds; returns the seconds of each but the first."""
        ...


class Alternated:
    """What several took in turns, so that a noisy machine disturbs all of them.

    Args:
        them: By name; in every pass each does one burst.
        passes: How many; one more comes before, which does not count.
    """

    def __init__(self, them: Mapping[str, Bursts], passes: int) -> None:
        self._seconds: dict[str, list[list[float]]] = {name: [] for name in them}
        for one in them.values():
            one.burst()
        for _ in range(passes):
            for name, one in them.items():
                self._seconds[name].append(one.burst())

    def median(self, name: str) -> float:
        """Returns the median of all rounds of one of them, in seconds."""
        return statistics.median(s for burst in self._seconds[name] for s in burst)

    def ratio(self, name: str, to: str) -> float:
        """Returns how many times one's round is the other's: the median of all passes.

        Both bursts of a pass came one after the other, so the machine was the same.
        """
        return statistics.median(
            statistics.median(one) / statistics.median(other)
            for one, other in zip(self._seconds[name], self._seconds[to], strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A run whose server has no round under way, or trains without being told to.

    Attributes:
        server: The server's process.
        workers: The workers' processes.
        resident: Bytes of the server's memory when all workers but one had come.
        gathering_peak: The most that it had taken until then.
        enrolled_seconds: From the workers' start to the last one's coming.
        rounds_a_burst: As the run's settings say.
    """

    server: Process
    workers: list[Process]
    resident: int
    gathering_peak: int
    enrolled_seconds: float
    rounds_a_burst: int

    def burst(self) -> list[float]:
        """Does some rounds; returns the seconds of each but the first."""
        for worker in self.workers:
            worker.tell()
        seconds = [self.round_seconds() for _ in range(self.rounds_a_burst)]
        for worker in self.workers:
            worker.next("at-gate", within=_ROUND_SECONDS)
        return seconds[1:]  # the first one waited at the gate

    def round_seconds(self) -> float:
        """Waits for a round's end; returns what the server says it took."""
        return float(self.server.next("round", within=_ROUND_SECONDS)["seconds"])

    def peak_above(self) -> int:
        """Returns the bytes of the server's peak above what it had before training."""
        return self.server.memory().peak - self.resident


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """The workers of a run.

    Attributes:
        workers: How many.
        in_a_process: How many of them share one.
    """

    workers: int
    in_a_process: int


PAIR = Crowd(workers=2, in_a_process=1)


@contextlib.contextmanager
def federation(
    directory: Path,
    *,
    size: Size,
    wire: str = "float32",
    burst: int = 0,
    crowd: Crowd = PAIR,
) -> Iterator[Federation]:
    """Lends a run that is about to begin: with a burst its gates are shut.

    The server's memory is read when all workers but one have enrolled and wait: then
    its state is there, and no model has gone out. Its peak is counted from there on.

    Args:
        directory: Where; must not exist.
        size: The model's size.
        wire: The wire format.
        burst: Rounds at a time, or 0 for a run that is never told to wait.
        crowd: How many workers. Those that share a process are light.
    """
    workers, each = crowd.workers, crowd.in_a_process
    watched = (SERVER, *(worker_names(0, workers) if each == 1 else ()))
    settings = Settings(
        size=size,
        workers=workers,
        rounds=_ENDLESS,
        wire=wire,
        ports=free_ports(2 + len(watched)),
        watched=watched,
        burst=burst,
    )
    prepare_run(directory, settings)
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | int | Path) -> Process:
            return stack.enter_context(Process(_NODE, *arguments))

        custodians = start("custodians", directory)
        custodians.next("custodians-ready", within=_START_SECONDS)
        server = start("server", directory)
        server.next("listening", within=_START_SECONDS)
        processes = []
        for first in range(0, workers, each):
            count = min(each, workers - first)
            hold = ["--hold"] if first + count == workers else []
            processes.append(start("workers", directory, first, count, *hold))
        before, seconds = _gather(server, processes[-1], workers)
        if burst:
            for process in processes:
                process.next("at-gate", within=_ROUND_SECONDS)
        yield Federation(
            server=server,
            workers=processes,
            resident=before.resident,
            gathering_peak=before.peak,
            enrolled_seconds=seconds,
            rounds_a_burst=burst,
        )


def _gather(server: Process, last: Process, workers: int) -> tuple[Memory, float]:
    """Waits for all workers; returns the server's memory and the seconds it took."""
    came: set[str] = set()
    began = 0.0
    memory = server.memory()
    while len(came) < workers:
        came.add(server.next("worker-joined", within=_START_SECONDS)["peer"])
        began = began or time.perf_counter()
        if len(came) == workers - 1:
            memory = server.memory()
            server.forget_peak()
            last.tell()
    return memory, time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Bare sockets with their gates shut.

    Attributes:
        server: The server's process.
        workers: The workers' processes.
        rounds_a_burst: How many it does when told to.
        cipher: What OpenSSL chose.
    """

    server: Process
    workers: list[Process]
    rounds_a_burst: int
    cipher: str

    def burst(self) -> list[float]:
        """Does some rounds; returns the seconds of each but the first."""
        for worker in self.workers:
            worker.tell(str(self.rounds_a_burst))
        seconds = [
            float(self.server.next("round", within=_ROUND_SECONDS)["seconds"])
            for _ in range(self.rounds_a_burst)
        ]
        for worker in self.workers:
            worker.next("at-gate", within=_ROUND_SECONDS)
        return seconds[1:]


@contextlib.contextmanager
def raw_sockets(directory: Path, *, size_bytes: int, burst: int) -> Iterator[Raw]:
    """Lends bare sockets that move so many bytes in each direction and round.

    Args:
        directory: Where certificates go.
        size_bytes: Of an update, and of a model.
        burst: Rounds at a time.
    """
    write_certificates(directory)
    [port] = free_ports(1)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(
            Process(_RAW, "server", directory, port, size_bytes)
        )
        server.next("listening", within=_START_SECONDS)
        workers = [
            stack.enter_context(Process(_RAW, "worker", directory, port, size_bytes))
            for _ in range(2)
        ]
        cipher = ""
        for worker in workers:
            cipher = worker.next("at-gate", within=_START_SECONDS)["cipher"][0]
        yield Raw(
            server=server,
            workers=workers,
            rounds_a_burst=burst,
            cipher=cipher,
        )
