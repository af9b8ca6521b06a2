from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.plan_tree import plan_tree, put, toml_of
from tests.support.records_in_memory import MemoryRecords, MemorySource
from tests.unit.workloads.darknet_texts import TINY
from tests.unit.workloads.small_task import settings

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.strategies.schedules import LearningRate, Poly
from cloister.plan.plan import parse_plan
from cloister.workloads.darknet_classification import (
    MNIST_CONFIG,
    DarknetClassification,
)
from cloister.workloads.darknet_config import parse_darknet
from cloister.workloads.darknet_layers import Convolution
from cloister.workloads.darknet_training import training_of


def stripes(count: int, *, seed: int) -> MemoryRecords:
    """Returns 4x4 images in three classes: rows, columns, or nothing but noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count).astype(np.uint8)
    images = generator.integers(0, 120, (count, 1, 4, 4)).astype(np.uint8)
    bright = generator.integers(0, 4, count)
    for image, label, at in zip(images, labels, bright, strict=True):
        if label < 2:
            image[(0, at) if label else (0, slice(None), at)] = 250
    return MemoryRecords({"label": labels, "image": images})


def source() -> MemorySource:
    return MemorySource(
        {"train": stripes(256, seed=1), "held-out": stripes(90, seed=2)}
    )


def test_without_options_it_is_plinius_network() -> None:
    task = DarknetClassification()
    model = task.initial_model(seed=7)
    assert model.layout.parameter_count + model.layout.statistic_count == 391_594
    kernels = [spec for spec in model.layout.parameters if spec.decay]
    assert (len(kernels), sum(spec.count for spec in kernels)) == (12, 388_640)
    layers = task.config.layers
    convolutions = [one for one in layers if isinstance(one, Convolution)]
    assert (len(layers), len(convolutions)) == (17, 12)
    assert task.schema().record_bytes == 785
    assert (
        training_of(task.config).rounds * training_of(task.config).batch_size == 64_000
    )


def test_a_few_rounds_learn_and_the_export_scores_the_same() -> None:
    task = DarknetClassification(config=TINY)
    data = source()
    training = training_of(task.config)
    rate = LearningRate(
        peak=training.optimizer.learning_rate, schedule=Poly(rounds=150, power=4)
    )
    learner = task.learner(data, settings(batch_size=32))
    model = task.initial_model(seed=7)
    out = ModelBuffer(model.layout)
    velocity = np.zeros_like(model.parameters)
    for number in range(1, 151):
        learner.load(model)
        learner.step(number, out)
        velocity = np.float32(training.optimizer.momentum) * velocity + out.parameters
        model.parameters -= np.float32(rate.at(number)) * velocity
        model.statistics[...] = out.statistics
    learner.load(model)
    evaluation = learner.evaluate()
    assert evaluation.examples == 90
    assert evaluation.sums["accuracy"] > 0.8 * 90
    learner.load(task.load_exported(task.export(model)))
    assert learner.evaluate() == evaluation


def test_predictions_are_the_probabilities_of_the_softmax() -> None:
    task = DarknetClassification(config=TINY)
    learner = task.learner(source(), settings())
    learner.load(task.initial_model(seed=7))
    (found,) = learner.predict()
    assert found["probability"].shape == (90, 3)
    np.testing.assert_allclose(found["probability"].sum(axis=1), 1, rtol=1e-5)


def test_images_reach_the_network_between_zero_and_one() -> None:
    task = DarknetClassification(config=TINY)
    network = task.model().eval()
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.tensor([0, 51, 255, 102] * 4, dtype=torch.uint8).view(1, 1, 4, 4)
    task.predict(network, {"image": image, "label": torch.zeros(1)})
    assert seen[0].flatten()[:4].tolist() == pytest.approx([0, 0.2, 1, 0.4])


@pytest.mark.parametrize("config", [7, "", "[net]", b"[net]"])
def test_an_option_that_is_no_configuration_is_refused(config: object) -> None:
    with pytest.raises(ConfigError) as caught:
        DarknetClassification(config=config)  # type: ignore[arg-type]
    expected = "darknet-config" if isinstance(config, str) else "option-invalid"
    assert caught.value.code == expected


def test_more_classes_than_a_label_can_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="300 classes"):
        DarknetClassification(config=TINY.replace("output=3", "output=300"))


def test_the_text_travels_in_a_plan_as_it_is_written() -> None:
    assert MNIST_CONFIG.startswith("[net]\n")
    tree = put(plan_tree(), ("task", "options"), {"config": MNIST_CONFIG})
    config = parse_plan(toml_of(tree)).task.options["config"]
    assert isinstance(config, str)
    assert config == MNIST_CONFIG
    assert parse_darknet(config) == DarknetClassification().config
