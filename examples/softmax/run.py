"""Three hospitals train a softmax regression, written in plain NumPy, on digits.

    python examples/softmax/run.py DIRECTORY

makes a simulated deployment in DIRECTORY with the task beside this file, runs its four
nodes on this machine, opens the sealed model as its owner, and prints what it scores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.deployment_files import Recipe
from cloister.cli.nodes import read_place, utc_now
from cloister.cli.progress import LineReporter
from cloister.cli.running import run_plan
from cloister.plan.plan import read_plan
from cloister.storage.model_vault import open_model, read_identity

RECIPE = Recipe(
    name="softmax",
    task=Path(__file__).with_name("task.py"),
    task_class="Softmax",
    options={"features": 192, "classes": 10},
    rounds=150,
    batch_size=32,
    precision="float32",
    learning_rate=0.3,
    weight_decay=1e-4,
    warmup_rounds=10,
    evaluate_every=50,
)


def main(directory: Path) -> None:
    """Runs the example in `directory`."""
    plan_path = write_deployment(
        DeploymentOrder(
            directory=directory,
            recipe=RECIPE,
            run="example",
            workers=(("north", "sgx"), ("south", "tdx"), ("west", "tdx")),
            server_tee="sgx",
            data=None,
        ),
        at=utc_now(),
        tell=print,
    )
    plan = read_plan(plan_path)
    run_plan(plan, plan_path, reporter=LineReporter(plan, Console()))
    place = read_place(plan_path, role="server", party=None, site_path=None)
    owner = read_identity(plan_path.parent / "owner" / "identity.txt")
    model = open_model(place.model_path, identity=owner)
    print("simulated:", model.metadata["simulated"])
    print("accuracy:", model.metadata["metric.accuracy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
