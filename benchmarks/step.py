"""Seconds a training step: server and two workers against a plain PyTorch loop.

Both train the demo's network on the demo's digits with the same total batch on the same
cores, in turns of a few steps (`turns`). The federation's records are sealed, the
loop's are plain arrays in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cloister.cli.commands.init import order_for
from cloister.cli.deployment import write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.progress import JsonReporter
from cloister.cli.recipes import DIGITS
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
from cloister.workloads.image_classification import ImageClassification, Images
from reporting import Figure, report
from turns import PlainLoop, Turns, in_memory, rounds_for

WORKERS = ("alice", "bob")
REACH = 1.1


def plain_loop() -> PlainLoop[Images]:
    """Returns an ordinary loop over one worker's digits, with both workers' batch."""
    dealt = DIGITS.deal(None, WORKERS, 7)
    return PlainLoop(
        ImageClassification(image_size=8, crop_padding=1, flip=False),
        in_memory(dealt[WORKERS[0]]),
        batch_size=len(WORKERS) * DIGITS.batch_size,
        precision="float32",
    )


def measure(directory: Path, *, steps: int, turns: int) -> Turns[Images]:
    """Runs the federation and the loop in turns."""
    plan_path = write_deployment(
        order_for(
            directory,
            data=None,
            workers=WORKERS,
            rounds=rounds_for(steps=steps, turns=turns),
        ),
        at=utc_now(),
        tell=lambda _: None,
    )
    taken = Turns(plain_loop(), steps)
    plan = sign_all_here(plan_path, at=utc_now()).plan
    run_plan(plan, plan_path, reporter=JsonReporter(taken))
    return taken


def main() -> None:
    """Measures both and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=8, help="in a turn")
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "deployment"
        taken = measure(place, steps=arguments.steps, turns=arguments.turns)
    ratio = taken.ratio()
    report(
        "A training step of ResNet-56 on digits, total batch 128",
        [
            Figure(
                name="server and two workers, attested, data sealed",
                value=taken.step_seconds,
                unit="s",
            ),
            Figure(
                name=f"plain loop, threads: {taken.plain.threads}",
                value=taken.loop_seconds,
                unit="s",
            ),
            Figure(
                name="ratio, median of all turns",
                value=ratio,
                unit="times",
                reach=f"at most {REACH}",
                ok=ratio <= REACH,
            ),
        ],
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
