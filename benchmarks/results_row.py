"""A row of the results, kept as JSON, and the page that all rows make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from cloister.plan.plan import Plan
from reporting import Figure, machine

INTRODUCTION = """\
# Results

Every figure below was measured by `make results` on the machine named beside it, with
simulated TEEs: on hardware the arithmetic is the same, and the speed is another. Each
row is a whole run, from a signed plan over sealed data to a sealed model, with a server
and its workers in processes of their own. Where several seeds were trained, the figure
says so. A row can be made again by its name:

```sh
make results RESULTS_FLAGS="--only NAME --data DIR"
```

`DIR` holds `cifar-10/` and `mnist/`; [data](how-to/data.md) says where to get them. All
other data is bundled with scikit-learn. A line called *projection* was not measured.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing shown.

    Attributes:
        name: By which it is selected.
        title: For people.
        data: Which data.
        split: How it was divided.
        seeds: Of the plan.
        epochs: Over the training records.
        plan: How it was trained, in words.
        command: What writes such a plan.
        seconds: Of one run, or of all that was done for the row.
        figures: What came out.
        machine: What it ran on.
        date: When.
        quick: Whether it was cut short, so that the figures say nothing.
    """

    name: str
    title: str
    data: str
    split: str
    seeds: list[int]
    epochs: float
    plan: str
    command: str
    seconds: float
    figures: list[Figure]
    machine: dict[str, str | int] = field(default_factory=machine)
    date: str = ""
    quick: bool = False


def plan_in_words(plan: Plan) -> str:
    """Returns how a plan trains."""
    training = plan.training
    built = msgspec.to_builtins(training)
    local = built.get("local_optimizer")
    parts = [
        f"{training.mode}, {training.rounds:,} rounds",
        f"{len(plan.workers)} x {training.batch_size} examples a step",
    ]
    if training.local_steps:
        parts.append(f"{training.local_steps} local steps")
    parts += [
        _settings(local or built["optimizer"]),
        _settings(built["schedule"]),
        f"{training.precision}, {_threads(training.threads)} a worker",
    ]
    return "; ".join(parts)


def write_row(row: Row, directory: Path) -> Path:
    """Keeps a row; returns its file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{row.name}.json"
    content = msgspec.json.format(msgspec.json.encode(asdict(row)), indent=2)
    path.write_bytes(content + b"\n")
    return path


def read_rows(directory: Path, names: Sequence[str]) -> list[Row]:
    """Returns the rows that are kept, in the order of `names`."""
    paths = [directory / f"{name}.json" for name in names]
    return [
        msgspec.json.decode(path.read_bytes(), type=Row)
        for path in paths
        if path.exists()
    ]


def page(rows: Sequence[Row]) -> str:
    """Returns the page of results in Markdown."""
    return "\n".join([INTRODUCTION, *map(_section, rows)])


def _section(row: Row) -> str:
    lines = [f"## {row.title}", ""]
    if row.quick:
        lines += ["**Cut short to see that it works: the figures say nothing.**", ""]
    lines += [
        "| | |",
        "| --- | --- |",
        f"| row | `{row.name}` |",
        f"| data | {row.data} |",
        f"| split | {row.split} |",
        f"| seeds | {', '.join(map(str, row.seeds))} |",
        f"| epochs | {row.epochs:.3g} |",
        f"| plan | {row.plan} |",
        f"| made by | `{row.command}` |",
        f"| time | {row.seconds:.0f} s |",
        f"| machine | {row.machine['cpu']}, {row.machine['cores']} cores |",
        f"| measured | {row.date} |",
        "",
        "| figure | value | asked for | |",
        "| --- | --- | --- | --- |",
    ]
    lines += [_figure(it) for it in row.figures]
    return "\n".join([*lines, ""])


def _figure(figure: Figure) -> str:
    met = ("reached" if figure.ok else "**missed**") if figure.reach else ""
    value = f"{figure.value:.4g}" if abs(figure.value) < 1000 else f"{figure.value:.0f}"
    return f"| {figure.name} | {value} {figure.unit} | {figure.reach} | {met} |"


def _settings(section: dict[str, object]) -> str:
    rest = [f"{k} {v}" for k, v in section.items() if k != "name" and v not in {0, ""}]
    return " ".join([str(section.get("name", "sgd")), *rest])


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
