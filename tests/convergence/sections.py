"""``[training]`` of the convergence tests' plans."""

from __future__ import annotations

from tests.support.central_loop import WEIGHT_DECAY
from tests.support.plan_tree import Tree

from cloister.plan.training import Mode, Wire


def training(  # noqa: PLR0913 - one for each key
    *,
    mode: Mode,
    rounds: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.9,
    wire: Wire = "float32",
    local_steps: int = 8,
    server_momentum: float = 0.0,
    seed: int = 7,
) -> Tree:
    """Returns the section: SGD that descends on data, with a rate along a cosine.

    Args:
        mode: The plan's; with sync-sgd the settings of local steps are left out.
        rounds: How many.
        batch_size: Examples a worker and step.
        learning_rate: Of what descends on data: the server, or the local steps.
        momentum: Its momentum.
        wire: How parameters and updates travel.
        local_steps: Steps of a worker in a round of fedavg.
        server_momentum: Of the server's SGD of rate 1 in fedavg (FedAvgM: Hsu et al.,
            2019); without it, the mean of the models is the next model.
        seed: The plan's.
    """
    section: Tree = {
        "mode": mode,
        "rounds": rounds,
        "batch_size": batch_size,
        "seed": seed,
        "wire": wire,
        "schedule": {"name": "cosine"},
    }
    descent: Tree = {
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": WEIGHT_DECAY,
    }
    if mode == "sync-sgd":
        return {**section, "optimizer": {"name": "sgd", **descent}}
    return {
        **section,
        "local_steps": local_steps,
        "local_optimizer": descent,
        "optimizer": {
            "name": "sgd",
            "learning_rate": 1.0,
            "momentum": server_momentum,
        },
    }
