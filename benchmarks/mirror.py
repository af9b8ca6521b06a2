"""What keeping a state costs: the mirror beside `torch.save`, AES-GCM and fsync.

102.4 MB in 100 tensors, of which every one changes between two saves. Both lie in the
same directory of the same medium and take turns, save by save, so that a noisy machine
disturbs both; whose turn is first changes each time. The ordinary way is what anybody
would write: serialise, encrypt, write a new file, fsync it, give it its name, fsync the
directory; and back: read, decrypt, deserialise. It has as many threads as they use; the
mirror has the cores.

The limit of a save is the slowest of what cannot be left out: the cipher, and the
memory's or the disk's writing. It is measured in the same turns.

The second part swaps elements of a 10 MB array, as in the figure of Romulus and
Plinius: transactions of more and more swaps, in the clear and sealed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from mirror_limits import Limits
from mirror_swaps import curve
from mirror_ways import Mirrored, Ordinary
from reporting import Figure, Parts, report

TENSORS: Final = 100
TENSOR_ELEMENTS: Final = 256_000  # of 4 bytes
REACH_SAVE: Final = {"tmpfs": 10.0, "disk": 3.5}
REACH_RESTORE: Final = 8.0


def take_turns(turns: int, *ways: tuple[str, Callable[[], None]]) -> Parts:
    """Times each way once in a turn; what each does the first time is not counted."""
    parts = Parts()
    for turn in range(turns + 1):
        timed = parts if turn else Parts()
        for name, act in ways if turn % 2 else ways[::-1]:
            timed.time(name, act)
    return parts


def at_least(name: str, value: float, reach: float) -> Figure:
    """Returns a ratio that is to be large."""
    return Figure(
        name=name,
        value=value,
        unit="times",
        reach=f"at least {reach:g}",
        ok=value >= reach,
    )


def ratio(parts: Parts, slow: str, fast: str) -> float:
    """Returns how many times faster one way is: the median over all turns."""
    times = parts.milliseconds
    return statistics.median(
        theirs / ours for theirs, ours in zip(times[slow], times[fast], strict=True)
    )


def states(
    medium: str, directory: Path, *, cores: int, turns: int, elements: int
) -> list[Figure]:
    """Measures saves and restores on one medium."""
    with ThreadPoolExecutor(max(1, cores - 1)) as threads:
        mirrored = Mirrored(
            directory,
            tensors=TENSORS,
            elements=elements,
            threads=threads,
            count=cores,
        )
        ordinary = Ordinary(directory, tensors=TENSORS, elements=elements)
        limits = Limits(
            directory, size=mirrored.size_bytes, threads=threads, count=cores
        )
        saves = take_turns(
            turns,
            ("ordinary", ordinary.save),
            ("mirror", mirrored.save),
            ("cipher", limits.cipher),
            ("memory", limits.memory),
            ("disk", limits.disk),
        )
        restores = take_turns(
            turns,
            ("ordinary", ordinary.restore),
            ("mirror", mirrored.restore),
            ("cipher", limits.cipher),
            ("memory", limits.memory),
        )
        mirrored.close()
    writing = "memory" if medium == "tmpfs" else "disk"
    saving, restoring = saves.medians(), restores.medians()
    save_limit = max(saving["cipher"], saving[writing])
    restore_limit = max(restoring["cipher"], restoring["memory"])
    return [
        Figure(name=f"{medium}: ordinary save", value=saving["ordinary"], unit="ms"),
        Figure(name=f"{medium}: mirror's save", value=saving["mirror"], unit="ms"),
        at_least(
            f"{medium}: save, times faster",
            ratio(saves, "ordinary", "mirror"),
            REACH_SAVE[medium],
        ),
        Figure(name=f"{medium}: limit of a save", value=save_limit, unit="ms"),
        Figure(
            name=f"{medium}: save, fraction of the limit",
            value=save_limit / saving["mirror"],
            unit="",
        ),
        Figure(
            name=f"{medium}: ordinary restore", value=restoring["ordinary"], unit="ms"
        ),
        Figure(
            name=f"{medium}: mirror's restore", value=restoring["mirror"], unit="ms"
        ),
        at_least(
            f"{medium}: restore, times faster",
            ratio(restores, "ordinary", "mirror"),
            REACH_RESTORE,
        ),
        Figure(
            name=f"{medium}: restore, fraction of the limit",
            value=restore_limit / restoring["mirror"],
            unit="",
        ),
    ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--elements", type=int, default=TENSOR_ELEMENTS)
    parser.add_argument("--swap-seconds", type=float, default=0.5, help="each")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))  # noqa: S108
    parser.add_argument("--disk", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    figures: list[Figure] = []
    media: dict[str, Path] = {"tmpfs": arguments.tmpfs, "disk": arguments.disk}
    for medium, where in media.items():
        with tempfile.TemporaryDirectory(dir=where) as scratch:
            figures += states(
                medium,
                Path(scratch),
                cores=cores,
                turns=arguments.turns,
                elements=arguments.elements,
            )
    with tempfile.TemporaryDirectory(dir=arguments.tmpfs) as scratch:
        figures += curve(Path(scratch), seconds=arguments.swap_seconds)
    megabytes = TENSORS * arguments.elements * 4 / 1e6
    report(
        f"A state of {megabytes:g} MB in {TENSORS} tensors, kept and found",
        figures,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
