"""Three hospitals train the softmax regression with an optimiser of their own, LAMB.

    python examples/own_strategy/run.py DIRECTORY

makes the deployment of `examples/softmax` in DIRECTORY and does with it what
`docs/how-to/write-a-strategy.md` says: puts the strategy beside this file beside the
plan, names it there, and has the policies expect nodes that measured it. All parties
sign that plan, everything runs on this machine, and it prints what the model scores.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console

from cloister.attestation.platforms.measurement import node_measurement
from cloister.cli.commands.measure import measure_roles
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.places import read_place
from cloister.cli.progress import LineReporter
from cloister.cli.recipes import Recipe
from cloister.cli.running import run_plan
from cloister.cli.signing import sign_all_here
from cloister.plan.plan import read_plan
from cloister.storage.model_vault import open_model, read_identity

HERE = Path(__file__).parent
OPTIMIZER = """\
optimizer = { name = "custom", learning_rate = 0.1, file = "strategy.py", \
class = "Lamb", options = { weight_decay = 1e-4 } }"""
RECIPE = Recipe(
    name="own-strategy",
    task=HERE.parent / "softmax" / "task.py",
    task_class="Softmax",
    options={"features": 192, "classes": 10},
    rounds=100,
    batch_size=32,
    precision="float32",
    learning_rate=0.1,
    weight_decay=1e-4,
    warmup_rounds=10,
    evaluate_every=50,
)


def take_strategy(plan_path: Path) -> None:
    """Puts the strategy beside a plan, which from then on names and expects it."""
    task_source = plan_path.with_name("task.py").read_bytes()
    shutil.copyfile(HERE / "strategy.py", plan_path.with_name("strategy.py"))
    lines = [
        OPTIMIZER if line.startswith("optimizer = ") else line
        for line in plan_path.read_text().splitlines()
    ]
    text = "\n".join(lines) + "\n"
    plan_path.write_text(text)
    machine = measure_roles(read_plan(plan_path), plan_path)
    for role, new in machine.measured.items():
        old = node_measurement(machine.installation, sources=(task_source,), role=role)
        # Of TDX's registers, RTMR2 is the one that holds the source files.
        text = text.replace(old.mr_enclave.hex(), new.mr_enclave.hex())
        text = text.replace(old.rtmr2.hex(), new.rtmr2.hex())
    plan_path.write_text(text)


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
    take_strategy(plan_path)
    plan = sign_all_here(plan_path, at=utc_now()).plan
    run_plan(plan, plan_path, reporter=LineReporter(plan, Console()))
    place = read_place(plan_path, role="server", party=None, site_path=None)
    owner = read_identity(plan_path.parent / "owner" / "identity.txt")
    model = open_model(place.model_path, identity=owner)
    print("simulated:", model.metadata["simulated"])
    print("accuracy:", model.metadata["metric.accuracy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
