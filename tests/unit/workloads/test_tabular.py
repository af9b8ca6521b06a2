from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords, MemorySource
from torch import nn

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings
from cloister.workloads.tabular import Standardised, TabularClassification
from cloister.workloads.torch_model import seeded

SETTINGS = LearnerSettings(
    party="north", batch_size=8, seed=7, threads=1, precision="float32"
)
# Columns as far apart as the breast-cancer data's.
SCALES = np.array([1e-2, 1.0, 1e3])


def rows(*, seed: int, count: int = 64) -> MemorySource:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    features = (generator.normal(5 + 2 * labels[:, None], 1, (count, 3))) * SCALES
    records = MemoryRecords(
        {"features": features.astype(np.float32), "label": labels.astype(np.uint8)}
    )
    return MemorySource({"train": records, "held-out": records})


def task(*, hidden: int = 0) -> TabularClassification:
    return TabularClassification(features=3, classes=2, hidden=hidden)


def statistics(
    source: MemorySource, *, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and variance of the columns after so many steps."""
    learner = task().learner(source, SETTINGS)
    model = task().initial_model(seed=7)
    out = ModelBuffer(model.layout)
    for number in range(1, steps + 1):
        learner.load(model)
        learner.step(number, out)
        model.statistics[:] = out.statistics
    mean, second = np.split(model.statistics, 2)
    return mean, second - mean**2


def test_without_a_hidden_layer_it_is_logistic_regression() -> None:
    assert task().initial_model(seed=7).layout.parameter_count == 3 * 2 + 2
    hidden = task(hidden=4).initial_model(seed=7).layout
    assert hidden.parameter_count == 3 * 4 + 4 + 4 * 2 + 2
    assert [spec.kind for spec in hidden.statistics] == ["statistic", "statistic"]


def test_the_statistics_that_travel_become_those_of_the_columns() -> None:
    source = rows(seed=1)
    mean, variance = statistics(source, steps=200)
    columns = np.asarray(source.split("train").columns["features"], np.float64)
    np.testing.assert_allclose(mean, columns.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(variance, columns.var(axis=0), rtol=0.4)


def test_training_standardises_as_evaluation_does() -> None:
    """A row means the same, whichever rows come with it."""
    layer = Standardised(3)
    batch = torch.from_numpy(rows(seed=1).split("train").read(np.arange(8))["features"])
    layer.train()
    trained = layer(batch)
    layer.eval()
    torch.testing.assert_close(layer(batch), trained, rtol=0, atol=0)
    torch.testing.assert_close(layer(batch[:1]), trained[:1], rtol=0, atol=0)


def test_a_batch_norm_would_hide_which_class_a_batch_is_of() -> None:
    high = torch.full((8, 3), 9.0)
    for layer in (nn.BatchNorm1d(3, affine=False), Standardised(3)):
        layer.train()
        shown = layer(high).abs().max()
        assert (shown > 1) == isinstance(layer, Standardised)


def test_it_learns_what_a_line_can_tell_apart() -> None:
    source = rows(seed=1)
    learner = task(hidden=8).learner(source, SETTINGS)
    model = task(hidden=8).initial_model(seed=7)
    out = ModelBuffer(model.layout)
    for number in range(1, 101):
        learner.load(model)
        learner.step(number, out)
        model.parameters[:] -= 0.3 * out.parameters
        model.statistics[:] = out.statistics
    learner.load(model)
    found = learner.evaluate()
    assert found.sums["accuracy"] / found.examples > 0.85


def test_what_it_predicts_are_probabilities() -> None:
    with seeded(7):
        module = task().model().eval()
    batch = {"features": torch.ones(5, 3), "label": torch.zeros(5, dtype=torch.int64)}
    predicted = task().predict(module, batch)["probability"]
    assert predicted.shape == (5, 2)
    torch.testing.assert_close(predicted.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    "options",
    [
        {"features": 0, "classes": 2},
        {"features": 3, "classes": 1},
        {"features": 3, "classes": 2, "hidden": -1},
        {"features": 3, "classes": 2, "hidden": True},
    ],
)
def test_options_that_make_no_network_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        TabularClassification(**options)
    assert caught.value.code == "option-invalid"
