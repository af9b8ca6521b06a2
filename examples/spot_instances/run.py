"""Three hospitals train on spot instances, and lose them again and again.

    python examples/spot_instances/run.py DIRECTORY

makes a deployment in DIRECTORY, and runs it twice: once in peace, once by a trace of
prices (`prices.csv`). Whenever the price is above what the worker in the west or the
server bids, its process is killed; when it has come down, the same command starts it
again. It prints whether both runs had the same loss in every round, to the last bit,
and draws the curves if Matplotlib is installed.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from fleet import Fleet
from market import Outage, outages, read_prices, rounds_before
from plot import draw

from cloister.api import deal_in_turn
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.recipes import Recipe
from cloister.cli.signing import sign_all_here
from cloister.plan.plan import read_plan
from cloister.storage.model_vault import open_model, read_identity
from cloister.storage.record_stream import RecordStream
from cloister.workloads.digits import DigitStream

HERE = Path(__file__).parent
SERVER = "aggregator"
WORKERS = ("north", "south", "west")
# Dollars an hour. North and south have machines of their own.
BIDS = {"west": 0.0955, SERVER: 0.1000}
ROUNDS = 400
LIMIT_SECONDS = 600


def deal_digits(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each party's digits, as the task wants them."""
    del source
    digits = DigitStream(seed=seed, image_shape=(192,))
    return dict(zip(parties, deal_in_turn(digits, len(parties)), strict=True))


RECIPE = Recipe(
    name="spot",
    task=HERE.parent / "softmax" / "task.py",
    task_class="Softmax",
    options={"features": 192, "classes": 10},
    rounds=ROUNDS,
    batch_size=128,
    precision="float32",
    learning_rate=0.01,  # so that the loss falls for hours
    weight_decay=1e-4,
    warmup_rounds=0,
    schedule="constant",
    evaluate_every=50,
    deal=deal_digits,
)


def make_plan(directory: Path) -> Path:
    """Returns the plan of a new deployment, signed by all."""
    order = DeploymentOrder(
        directory=directory,
        recipe=RECIPE,
        run="example",
        workers=(("north", "sgx"), ("south", "tdx"), ("west", "tdx")),
        server_tee="sgx",
        data=None,
    )
    plan = write_deployment(order, at=utc_now(), tell=_tell)
    sign_all_here(plan, at=utc_now())
    return plan


def train(plan: Path, met: Sequence[Outage]) -> dict[int, float]:
    """Trains to the end; returns the loss of each round.

    Args:
        plan: The plan.
        met: When somebody's instance is taken away.

    Raises:
        RuntimeError: If a node fails, or a round that is done again has another loss.
    """
    losses: dict[int, float] = {}
    ahead = list(met)
    with Fleet(plan, server=SERVER, workers=WORKERS) as fleet:
        for number, loss in fleet.rounds():
            if losses.setdefault(number, loss) != loss:
                raise RuntimeError(f"round {number} came out in another way")
            if ahead and number >= rounds_before(ahead[0], met):
                _lose(fleet, ahead.pop(0))
        fleet.finish()
    return losses


def _lose(fleet: Fleet, outage: Outage) -> None:
    _tell(f"minutes {outage.begin} to {outage.end}: {' and '.join(outage.away)} away")
    for party in outage.away:
        fleet.kill(party)
    # Nothing happens meanwhile, so nobody waits here.
    for party in outage.away:
        fleet.start(party)


def model_hash(plan: Path) -> str:
    """Returns SHA-256 of the trained model's arrays, opened as its owner."""
    identity = read_identity(plan.parent / "owner" / "identity.txt")
    sealed = plan.parent / "runs" / "spot.example" / "model.safetensors.age"
    digest = hashlib.sha256()
    for name, array in sorted(open_model(sealed, identity=identity).arrays.items()):
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()


def main(directory: Path) -> None:
    """Runs the example in `directory`."""
    prices = read_prices(HERE / "prices.csv")
    met = outages(prices, BIDS)
    quiet_plan = make_plan(directory / "quiet")
    spot_plan = directory / "spot" / quiet_plan.name
    shutil.copytree(quiet_plan.parent, spot_plan.parent)
    _tell("training in peace")
    quiet = train(quiet_plan, ())
    _tell("training on spot instances")
    spot = train(spot_plan, met)
    print("simulated:", read_plan(quiet_plan).simulated)
    print("outages:", len(met))
    print("kills:", sum(len(outage.away) for outage in met))
    print("rounds compared:", len(spot.keys() & quiet.keys()))
    print("same losses:", all(quiet[number] == loss for number, loss in spot.items()))
    print("same model:", model_hash(quiet_plan) == model_hash(spot_plan))
    figure = directory / "loss.svg"
    try:
        draw(figure, prices=prices, bids=BIDS, all_outages=met, quiet=quiet, spot=spot)
    except ImportError:
        _tell("no figure: install cloister[plots]")
    else:
        print("figure:", figure)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(*_: object) -> NoReturn:
    raise TimeoutError(f"it takes longer than {LIMIT_SECONDS} seconds")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT_SECONDS)
    main(Path(sys.argv[1]))
