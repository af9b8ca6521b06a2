"""A thousand attested workers at one server: do rounds complete, and what do they cost?

All workers are attested on the simulated platform by the whole handshake. They are
light: some hundreds in a process, where all receive models in one buffer; their updates
are zeros, and their custodians only remember. The server is an ordinary one in a
process of its own, with a real custodian and an audit log.

Memory a connection is what the server's peak is above that of the same server with two
workers. Models of half and of a quarter of the size show whether time is linear in
bytes. It ends by itself, whatever happens.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from reporting import Figure, report
from rounds_processes import Memory
from rounds_run import PAIR, Crowd, federation
from rounds_task import SMALL, Size

REACH_KIB = 512.0
REACH_GROWTH = 2.0  # percent: where a page more or less is no growth
REACH_LINEAR = 2.2
IN_A_PROCESS = 250
SETTLED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run took.

    Attributes:
        seconds: Of every round but the first ones.
        enrolled_seconds: From the first worker's coming to the last one's.
        settled: The server's memory after the first rounds.
        last: And after the last.
        peak: The most that it took at any time, in bytes.
    """

    seconds: list[float]
    enrolled_seconds: float
    settled: Memory
    last: Memory
    peak: int


def measure(directory: Path, size: Size, crowd: Crowd, *, rounds: int) -> Measured:
    """Runs so many rounds after the first ones."""
    with federation(directory, size=size, crowd=crowd) as run:
        for _ in range(SETTLED):
            run.round_seconds()
        settled = run.server.memory()
        seconds = [run.round_seconds() for _ in range(rounds)]
        last = run.server.memory()
        return Measured(
            seconds=seconds,
            enrolled_seconds=run.enrolled_seconds,
            settled=settled,
            last=last,
            peak=max(run.gathering_peak, last.peak),
        )


def figures_of(directory: Path, *, workers: int, rounds: int) -> list[Figure]:
    """Measures everything."""
    crowd = Crowd(workers=workers, in_a_process=IN_A_PROCESS)
    two = measure(directory / "two", SMALL, PAIR, rounds=rounds)
    many = measure(directory / "many", SMALL, crowd, rounds=rounds)
    growth = (many.last.peak - many.settled.peak) / many.settled.peak * 100
    kib = (many.peak - two.peak) / (workers - PAIR.workers) / 1024
    return [
        Figure(
            name=f"{workers} workers came, within",
            value=many.enrolled_seconds,
            unit="s",
        ),
        Figure(
            name="  a worker",
            value=many.enrolled_seconds / workers * 1000,
            unit="ms",
        ),
        Figure(
            name="round, 1 MB",
            value=statistics.median(many.seconds),
            unit="s",
            reach="rounds complete",
        ),
        Figure(name="server's peak, 2 workers", value=two.peak / 1e6, unit="MB"),
        Figure(name=f"  {workers} workers", value=many.peak / 1e6, unit="MB"),
        Figure(
            name="  a connection",
            value=kib,
            unit="KiB",
            reach=f"at most {REACH_KIB:g}",
            ok=kib <= REACH_KIB,
        ),
        Figure(
            name=f"  growth of the peak after round {SETTLED}",
            value=growth,
            unit="%",
            reach=f"none: at most {REACH_GROWTH:g}",
            ok=growth <= REACH_GROWTH,
        ),
        *_linearity(directory, crowd, many, rounds=rounds),
    ]


def _linearity(
    directory: Path, crowd: Crowd, whole: Measured, *, rounds: int
) -> list[Figure]:
    figures = []
    larger = statistics.median(whole.seconds)
    for part in (2, 4):
        size = Size(parameters=SMALL.parameters // part, tensors=SMALL.tensors)
        run = measure(directory / f"part-{part}", size, crowd, rounds=rounds)
        seconds = statistics.median(run.seconds)
        figures += [
            Figure(name=f"round, 1/{part} MB", value=seconds, unit="s"),
            Figure(
                name="  twice the bytes take",
                value=larger / seconds,
                unit="times",
                reach=f"linear: at most {REACH_LINEAR:g}",
                ok=larger / seconds <= REACH_LINEAR,
            ),
        ]
        larger = seconds
    return figures


def _stop(*_: object) -> NoReturn:
    raise TimeoutError("it takes longer than --limit-seconds")


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a hundred workers")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--limit-seconds", type=int, default=900)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(options.limit_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        figures = figures_of(
            Path(scratch),
            workers=100 if options.quick else options.workers,
            rounds=options.rounds,
        )
    report("workers at one server, attested", figures, as_json=options.json)


if __name__ == "__main__":
    main()
