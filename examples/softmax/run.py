"""Three hospitals train a softmax regression, written in plain NumPy, on digits.

    python examples/softmax/run.py DIRECTORY

makes a simulated deployment in DIRECTORY with the task beside this file, signs its plan
for all parties, runs their custodians and nodes on this machine, opens the sealed model
as its owner, and prints what it scores.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.places import read_place
from cloister.cli.progress import LineReporter
from cloister.cli.recipes import Recipe
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
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
    plan = sign_all_here(plan_path, at=utc_now()).plan
    run_plan(plan, plan_path, reporter=LineReporter(plan, Console()))
    place = read_place(plan_path, role="server", party=None, site_path=None)
    owner = read_identity(plan_path.parent / "owner" / "identity.txt")
    model = open_model(place.model_path, identity=owner)
    print("simulated:", model.metadata["simulated"])
    print("accuracy:", model.metadata["metric.accuracy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
