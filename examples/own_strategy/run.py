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
from collections.abc import Mapping, Sequence
from pathlib import Path

from cloister.api import Federation, deal_in_turn
from cloister.attestation.platforms.measurement import node_measurement
from cloister.cli.commands.measure import measure_roles
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.recipes import Recipe
from cloister.cli.signing import sign_all_here
from cloister.plan.plan import read_plan
from cloister.storage.record_stream import RecordStream
from cloister.workloads.digits import DigitStream

HERE = Path(__file__).parent
OPTIMIZER = """\
optimizer = { name = "custom", learning_rate = 0.1, file = "strategy.py", \
class = "Lamb", options = { weight_decay = 1e-4 } }"""


def deal_digits(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each party's digits, as the task wants them."""
    del source
    digits = DigitStream(seed=seed, image_shape=(192,))
    return dict(zip(parties, deal_in_turn(digits, len(parties)), strict=True))


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
    deal=deal_digits,
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
    sign_all_here(plan_path, at=utc_now())
    trained = Federation.from_plan(plan_path).fit()
    print("simulated:", trained.simulated)
    print("accuracy:", trained.metrics["accuracy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
