from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import cloister.workloads.image_classification as module
from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import LearnerSettings, Task
from cloister.storage.raw_shard import RawShard, open_raw_shard
from cloister.workloads.image_classification import ImageClassification
from cloister.workloads.shards import write_digit_shards


def small_task() -> ImageClassification:
    return ImageClassification(depth=8, image_size=8, crop_padding=1, flip=False)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> RawShard:
    directory = tmp_path_factory.mktemp("digits") / "alice"
    write_digit_shards([directory], seed=7)
    return open_raw_shard(directory, small_task().schema())


def test_the_default_task_reads_cifar_records_into_the_reference_network() -> None:
    task: Task = ImageClassification()
    assert task.schema().record_bytes == 3073
    assert task.initial_model(seed=7).layout.parameter_count == 855_834


def test_resnet_50_is_a_network_of_the_same_task() -> None:
    task = ImageClassification(network="resnet-50", batch_norm_momentum=0.2)
    network = task.model()
    assert sum(p.numel() for p in network.parameters()) == 23_520_842
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.2}


def test_predictions_are_probabilities(shard: RawShard) -> None:
    task = small_task()
    learner = task.learner(
        shard,
        LearnerSettings(
            party="alice", batch_size=64, seed=7, threads=1, precision="float32"
        ),
    )
    learner.load(task.initial_model(seed=7))
    found = [one["probability"] for one in learner.predict()]
    assert [rows.shape for rows in found] == [(250, 10), (109, 10)]
    assert np.allclose(found[0].sum(axis=1), 1)


def test_weight_decay_covers_the_kernels_alone() -> None:
    layout = ImageClassification().initial_model(seed=7).layout
    exempt = {s.name for s in layout.parameters if not s.decay}
    assert all("norm" in name or name == "dense.bias" for name in exempt)
    assert sum(s.count for s in layout.parameters if s.decay) == 851_760


def test_a_few_rounds_on_digits_learn_and_the_export_scores_the_same(
    shard: RawShard,
) -> None:
    task = small_task()
    learner = task.learner(
        shard,
        LearnerSettings(
            party="alice", batch_size=64, seed=7, threads=1, precision="float32"
        ),
    )
    model = task.initial_model(seed=7)
    out = ModelBuffer(model.layout)
    velocity = np.zeros_like(model.parameters)
    for number in range(1, 61):
        learner.load(model)
        learner.step(number, out)
        velocity = np.float32(0.9) * velocity + out.parameters
        model.parameters -= np.float32(0.05) * velocity
        model.statistics[...] = out.statistics
    learner.load(model)
    evaluation = learner.evaluate()
    assert evaluation.examples == 359
    assert evaluation.sums["accuracy"] > 0.85 * 359
    learner.load(task.load_exported(task.export(model)))
    assert learner.evaluate() == evaluation


@pytest.mark.parametrize(
    "options",
    [
        *({"depth": 9}, {"image_size": 0}, {"crop_padding": -1}, {"flip": 1}),
        *({"network": "resnet-18"}, {"depth": 8, "network": "resnet-50"}),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    shard: RawShard, options: dict[str, int | str]
) -> None:
    def use() -> None:
        made = ImageClassification(**{"depth": 8, "image_size": 8} | options)  # type: ignore[arg-type]
        made.model()
        made.train_data(shard)

    with pytest.raises(ConfigError, match=next(iter(options))) as caught:
        use()
    assert caught.value.code == "option-invalid"


def test_the_file_stands_alone_when_it_is_copied() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in names:
        imported = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert not any(name.startswith("_") for name in imported)
