"""Seconds a round and the server's memory, where nothing is computed.

A server and two workers, each a process of its own: attested on the simulated platform
by the whole handshake, with an audit log and a real custodian for each party (all
custodians in one process). Bare TLS sockets that move the same bytes in the same
topology take turns with them, burst by burst. Seconds are the server's own, from one
completed round to the next; the first of a burst does not count, for it waited.

Memory is the server's: its peak in all rounds above what it had right before the first
model went out. The run with many workers has light ones: many in a process, with one
buffer for the models of all, updates of zeros, and custodians that only remember.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path

from reporting import Figure, report
from rounds_run import (
    Alternated,
    Bursts,
    Crowd,
    Federation,
    federation,
    raw_sockets,
)
from rounds_task import BIG, SMALL, Size

QUICK = Size(parameters=6_400_000, tensors=100)
REACH_RAW, REACH_BFLOAT16, REACH_MEMORY, REACH_STEP_MS = 1.3, 0.7, 3.0, 10.0
BURST, SMALL_BURST = 5, 40
LIGHT_IN_A_PROCESS = 32
MANY_ROUNDS = 3


def at_most(name: str, value: float, unit: str, reach: float) -> Figure:
    """Returns a figure that is to be small."""
    return Figure(
        name=name,
        value=value,
        unit=unit,
        reach=f"at most {reach:g}",
        ok=value <= reach,
    )


def big_rounds(
    directory: Path, size: Size, *, wires: tuple[str, ...], passes: int
) -> list[Figure]:
    """Measures rounds of a large model, and the server's memory."""
    with contextlib.ExitStack() as stack:
        sockets = raw_sockets(
            directory / "raw", size_bytes=size.size_bytes, burst=BURST
        )
        raw = stack.enter_context(sockets)
        runs: dict[str, Federation] = {
            wire: stack.enter_context(
                federation(directory / wire, size=size, wire=wire, burst=BURST)
            )
            for wire in wires
        }
        them: dict[str, Bursts] = {"raw": raw, **runs}
        took = Alternated(them, passes)
        megabytes = f"{size.size_bytes / 1e6:.1f} MB"
        figures = [
            Figure(
                name=f"bare TLS sockets, {megabytes}",
                value=took.median("raw"),
                unit="s",
            )
        ]
        for wire, run in runs.items():
            figures += [
                Figure(
                    name=f"round, {megabytes}, {wire}",
                    value=took.median(wire),
                    unit="s",
                ),
                at_most(
                    "  to bare sockets", took.ratio(wire, "raw"), "times", REACH_RAW
                )
                if wire == "float32"
                else at_most(
                    "  to float32",
                    took.ratio(wire, "float32"),
                    "times",
                    REACH_BFLOAT16,
                ),
                *memory_of(run, size, "2 workers"),
            ]
        return figures


def memory_of(run: Federation, size: Size, who: str) -> list[Figure]:
    """Returns what the server's memory was."""
    return [
        at_most(
            f"  server's peak above its state, {who}",
            run.peak_above() / size.size_bytes,
            "times the model",
            REACH_MEMORY,
        ),
        Figure(
            name="  before the first model went out",
            value=run.resident / 1e6,
            unit="MB",
        ),
    ]


def small_rounds(directory: Path, *, passes: int) -> list[Figure]:
    """Measures rounds of a small model."""
    sockets = raw_sockets(
        directory / "raw", size_bytes=SMALL.size_bytes, burst=SMALL_BURST
    )
    run = federation(directory / "run", size=SMALL, burst=SMALL_BURST)
    with sockets as raw, run as ours:
        took = Alternated({"raw": raw, "ours": ours}, passes)
    return [
        at_most("round, 1 MB", took.median("ours") * 1000, "ms", REACH_STEP_MS),
        Figure(
            name="  bare TLS sockets",
            value=took.median("raw") * 1000,
            unit="ms",
        ),
        Figure(name="  ratio", value=took.ratio("ours", "raw"), unit="times"),
    ]


def many_workers(directory: Path, size: Size, workers: int) -> list[Figure]:
    """Measures the server's memory with many workers."""
    crowd = Crowd(workers=workers, in_a_process=LIGHT_IN_A_PROCESS)
    with federation(directory / "many", size=size, crowd=crowd) as run:
        seconds = [run.round_seconds() for _ in range(MANY_ROUNDS)]
        return [
            Figure(
                name=f"round, {size.size_bytes / 1e6:.1f} MB, {workers} workers",
                value=statistics.median(seconds[1:]),
                unit="s",
            ),
            *memory_of(run, size, f"{workers} workers"),
        ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the size, fewer rounds"
    )
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("--many", type=int, default=64, help="0 leaves them out")
    parser.add_argument(
        "--many-parameters", type=int, help="of their model; the large one's if absent"
    )
    parser.add_argument("--wires", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    size = QUICK if options.quick else BIG
    passes = 2 if options.quick else options.passes
    many = Size(
        parameters=options.many_parameters or size.parameters, tensors=size.tensors
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        figures = [
            *big_rounds(place / "big", size, wires=tuple(options.wires), passes=passes),
            *small_rounds(place / "small", passes=passes),
            *(many_workers(place, many, options.many) if options.many else ()),
        ]
    report("rounds that compute nothing, attested", figures, as_json=options.json)


if __name__ == "__main__":
    main()
