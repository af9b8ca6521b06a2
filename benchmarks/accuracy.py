"""Final accuracy and bytes moved, in both modes and both wire formats.

Whole runs: a server and two workers, attested, in processes of their own, with the
recipe that `cloister init` writes. Digits come with the demo; another data set in
CIFAR-10's binary format is given by its directory. Each is trained with some seeds, of
which every mode and format has the same: first weights and batches are then the same,
too. A seed alone says little, since any rounding leads training elsewhere: the spread
over seeds is beside each mean. Accuracy is over all held-out examples, and bytes are
what the server received and sent.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec

from cloister.cli.commands.init import order_for
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.processes import Event
from cloister.cli.progress import JsonReporter
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
from cloister.plan.training import Mode, Wire
from reporting import Figure, report

WORKERS = ("alice", "bob")
SEEDS = (7, 1, 2, 3, 4, 5, 6)
QUICK_ROUNDS = 16
MOST_POINTS = 1.5
MOST_BYTES = 0.55


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run ended.

    Attributes:
        rounds: Its rounds.
        accuracy: Share of held-out examples that the final model gets right.
        moved_bytes: Updates received and models sent, by the last round.
        seconds: From the start of the processes to their end.
    """

    rounds: int
    accuracy: float
    moved_bytes: int
    seconds: float


class Watched:
    """Takes the server's events and keeps the newest figures."""

    def __init__(self) -> None:
        self.accuracy = float("nan")
        self.moved_bytes = 0

    def __call__(self, event: Event) -> None:
        """Takes an event."""
        if event.get("party") != "aggregator":
            return
        if event.get("event") == "evaluation":
            metrics = msgspec.convert(event["metrics"], dict[str, float])
            self.accuracy = metrics["accuracy"]
        elif event.get("event") == "round":
            received = msgspec.convert(event["bytes_received"], int)
            self.moved_bytes = received + msgspec.convert(event["bytes_sent"], int)


def train(order: DeploymentOrder) -> Outcome:
    """Carries out one run, from the writing of its plan to the sealed model."""
    plan_path = write_deployment(order, at=utc_now(), tell=lambda _: None)
    plan = sign_all_here(plan_path, at=utc_now()).plan
    watched = Watched()
    began = time.perf_counter()
    run_plan(plan, plan_path, reporter=JsonReporter(watched))
    return Outcome(
        rounds=plan.training.rounds,
        accuracy=watched.accuracy,
        moved_bytes=watched.moved_bytes,
        seconds=time.perf_counter() - began,
    )


def train_apart(
    *,
    data: Path | None,
    mode: Mode,
    wire: Wire,
    depth: int | None,
    quick: bool,
    seed: int,
) -> Outcome:
    """Carries out one run in a directory of its own, which is then removed."""
    with tempfile.TemporaryDirectory() as scratch:
        made = order_for(
            Path(scratch) / "deployment",
            data=data,
            workers=WORKERS,
            rounds=None,
            tee=None,
            mode=mode,
            wire=wire,
        )
        recipe = made.recipe
        if depth is not None:
            recipe = replace(recipe, options={**recipe.options, "depth": depth})
        if quick:
            rounds = max(1, QUICK_ROUNDS // (recipe.local_steps or 1))
            recipe = replace(recipe.for_rounds(rounds), warmup_rounds=1)
        return train(replace(made, recipe=replace(recipe, seed=seed)))


def figures_of(
    what: str, outcomes: dict[Wire, list[Outcome]], *, quick: bool
) -> list[Figure]:
    """Returns the figures of one data set in one mode, format by format."""
    figures = []
    for wire, runs in outcomes.items():
        name = f"{what}, {wire}, {runs[0].rounds} rounds"
        found = [100 * run.accuracy for run in runs]
        seconds = statistics.median(run.seconds for run in runs)
        figures += [
            Figure(
                name=f"{name}: accuracy, mean of {len(runs)} seeds",
                value=statistics.mean(found),
                unit="%",
            ),
            Figure(
                name=f"{name}: best less worst seed",
                value=max(found) - min(found),
                unit="points",
            ),
            Figure(
                name=f"{name}: moved a run", value=runs[0].moved_bytes / 1e6, unit="MB"
            ),
            Figure(name=f"{name}: a run took", value=seconds, unit="s"),
        ]
    pairs = list(zip(outcomes["float32"], outcomes["bfloat16"], strict=True))
    points = statistics.mean(100 * (r.accuracy - e.accuracy) for e, r in pairs)
    exact, rounded = pairs[0]
    ratio = rounded.moved_bytes / exact.moved_bytes
    return [
        *figures,
        Figure(
            name=f"{what}, bfloat16 less float32",
            value=points,
            unit="points",
            # A network that has just begun to learn says nothing of a format.
            reach="" if quick else f"at least -{MOST_POINTS}",
            ok=points >= -MOST_POINTS,
        ),
        Figure(
            name=f"{what}, bytes to float32's",
            value=ratio,
            unit="times",
            reach=f"at most {MOST_BYTES}",
            ok=ratio <= MOST_BYTES,
        ),
    ]


def main() -> None:
    """Trains each combination and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, help="a CIFAR-10 binary directory, too")
    parser.add_argument("--depth", type=int, help="of the network; 6n + 2")
    parser.add_argument("--only-data", action="store_true", help="leave digits out")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=3
    )
    parser.add_argument("--quick", action="store_true", help="one seed, a few rounds")
    arguments = parser.parse_args()
    sets: dict[str, Path | None] = {} if arguments.only_data else {"digits": None}
    if arguments.data is not None:
        sets[arguments.data.name] = arguments.data
    seeds = SEEDS[: 1 if arguments.quick else arguments.seeds]
    figures = []
    for name, data in sets.items():
        for mode in get_args(Mode):
            outcomes: dict[Wire, list[Outcome]] = {}
            for wire in get_args(Wire):
                outcomes[wire] = [
                    train_apart(
                        data=data,
                        mode=mode,
                        wire=wire,
                        depth=arguments.depth,
                        quick=arguments.quick,
                        seed=seed,
                    )
                    for seed in seeds
                ]
            figures += figures_of(f"{name}, {mode}", outcomes, quick=arguments.quick)
    report(
        "What mode and wire format do to accuracy and traffic",
        figures,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
