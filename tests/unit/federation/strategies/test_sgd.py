from __future__ import annotations

import numpy as np
import pytest
import torch

from cloister.federation.strategies.sgd import Sgd

COUNT = 64


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_it_steps_as_pytorch_does(momentum: float, weight_decay: float) -> None:
    generator = np.random.default_rng(7)
    start = generator.normal(size=COUNT).astype(np.float32)
    mask = (np.arange(COUNT) % 3 > 0).astype(np.float32)
    ours = Sgd(momentum=momentum, weight_decay=weight_decay, decay_mask=mask)
    parameters, velocity = start.copy(), ours.initial()

    decayed = torch.nn.Parameter(torch.from_numpy(start[mask > 0].copy()))
    exempt = torch.nn.Parameter(torch.from_numpy(start[mask == 0].copy()))
    theirs = torch.optim.SGD(
        [
            {"params": [decayed], "weight_decay": weight_decay},
            {"params": [exempt], "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=momentum,
    )
    for step in range(30):
        rate = 0.1 / (1 + step)
        gradient = generator.normal(size=COUNT).astype(np.float32)
        parameters, velocity = ours.update(
            parameters, velocity, gradient=gradient, rate=rate
        )
        decayed.grad = torch.from_numpy(gradient[mask > 0])
        exempt.grad = torch.from_numpy(gradient[mask == 0])
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()

    assert parameters.dtype == velocity.dtype == np.float32
    for mine, other in (
        (parameters[mask > 0], decayed.detach().numpy()),
        (parameters[mask == 0], exempt.detach().numpy()),
    ):
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=2e-7)


def test_its_arguments_stay_as_they_are() -> None:
    ones = np.ones(3, np.float32)
    sgd = Sgd(momentum=0.9, weight_decay=0.1, decay_mask=ones.copy())
    velocity = sgd.initial()
    sgd.update(ones, velocity, gradient=ones, rate=0.1)
    np.testing.assert_array_equal(ones, np.ones(3))
    np.testing.assert_array_equal(velocity, np.zeros(3))


def test_without_gradient_and_decay_nothing_moves() -> None:
    sgd = Sgd(momentum=0.9, weight_decay=0.5, decay_mask=np.zeros(3, np.float32))
    start = np.array([1, -2, 3], np.float32)
    moved, _ = sgd.update(
        start, sgd.initial(), gradient=np.zeros(3, np.float32), rate=1.0
    )
    assert moved.tobytes() == start.tobytes()
