"""One form for all benchmarks: a table for people, an object for machines."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value beside what it should reach.

    Attributes:
        name: What was measured.
        value: The figure.
        unit: Its unit.
        reach: What is asked of it, in words; empty for a figure that only informs.
        ok: Whether it reaches that.
    """

    name: str
    value: float
    unit: str
    reach: str = ""
    ok: bool = True


class Parts:
    """Milliseconds of each part of something, by what it does."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = {}

    def time(self, name: str, step: Callable[[], Result]) -> Result:
        """Times one step."""
        began = time.perf_counter()
        result = step()
        spent = (time.perf_counter() - began) * 1000
        self.milliseconds.setdefault(name, []).append(spent)
        return result

    def medians(self) -> dict[str, float]:
        """Returns each part's median, in the order of their first times."""
        return {n: statistics.median(v) for n, v in self.milliseconds.items()}


def resident_bytes() -> int:
    """Returns the memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine() -> dict[str, str | int]:
    """Returns what the figures were measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def report(title: str, figures: list[Figure], *, as_json: bool) -> None:
    """Prints the figures."""
    if as_json:
        result = {"figures": [asdict(f) for f in figures], "machine": machine()}
        print(msgspec.json.encode(result).decode())
        return
    here = machine()
    table = Table(title=f"{title}\n{here['cpu']}, {here['cores']} cores", box=None)
    for name in ("figure", "value", "unit", "reach", "ok"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for figure in figures:
        table.add_row(
            figure.name,
            f"{figure.value:.4g}",
            figure.unit,
            figure.reach,
            ("yes" if figure.ok else "NO") if figure.reach else "",
        )
    Console().print(table)
