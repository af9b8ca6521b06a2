"""A network's structure, as somebody has it who has not its code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from tests.support.records_in_memory import MemoryRecords, MemorySource
from tests.unit.workloads.small_task import (
    PRECISIONS,
    SmallTask,
    random_model,
    settings,
    small_shard,
)
from torch import nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Precision
from cloister.storage.records import Field, Schema, SplitName
from cloister.workloads.tensor_batches import Tensors
from cloister.workloads.torch import TorchTask

CANARY = b"canary-canary-canary-record-0001"


def loaded(graph: bytes) -> nn.Module:
    module: nn.Module = torch.export.load(io.BytesIO(graph)).module()
    return module


def plain_module(task: SmallTask, model: ModelBuffer) -> nn.Module:
    module = task.model().eval()
    state = {name: torch.from_numpy(a) for name, a in task.export(model).items()}
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("examples", [1, 2, 3, 77])
def test_the_graph_computes_what_the_model_does_for_any_number_of_examples(
    examples: int,
) -> None:
    task = SmallTask(dropout=0.5)
    model = random_model(task)
    learner = task.learner(small_shard(), settings())
    learner.load(model)
    points = torch.from_numpy(np.random.default_rng(1).random((examples, 4), "f4"))
    found = loaded(learner.graph())(points)
    assert torch.equal(found, plain_module(task, model)(points))


def test_a_graph_is_of_the_same_bytes_each_time_and_disturbs_nothing() -> None:
    task = SmallTask()
    learner = task.learner(small_shard(), settings())
    learner.load(random_model(task))
    before, state = learner.evaluate(), torch.random.get_rng_state()
    assert learner.graph() == learner.graph()
    assert torch.equal(state, torch.random.get_rng_state())
    assert learner.evaluate() == before


class Reader(nn.Module):
    """Takes its inputs by name, in a dictionary, and with a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(256, 4)
        self.dense = nn.Linear(4 + 2, 2)

    @override
    def forward(
        self, inputs: Mapping[str, torch.Tensor], *, sharp: bool
    ) -> torch.Tensor:
        seen = self.words(inputs["text"]).mean(dim=1)
        scores: torch.Tensor = self.dense(torch.cat((seen, inputs["pair"]), dim=1))
        return scores * 2 if sharp else scores


class ReaderTask(TorchTask):
    """Learns from short texts."""

    @override
    def schema(self) -> Schema:
        return Schema(
            fields=(
                Field(name="label", dtype="uint8", below=2),
                Field(name="pair", dtype="float32", shape=(2,)),
                Field(name="text", dtype="int32", shape=(len(CANARY),), below=256),
            )
        )

    @override
    def model(self) -> nn.Module:
        return Reader()

    @override
    def loss(self, model: nn.Module, batch: Tensors) -> torch.Tensor:
        # What the network is given differs from zero for a record of zeros, too.
        inputs = {"text": batch["text"] + 1, "pair": batch["pair"] + 0.5}
        return cross_entropy(model(inputs, sharp=True), batch["label"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_worker_that_wrote_the_graph_down_trains_to_the_same_bits(
    precision: Precision,
) -> None:
    updates = []
    for writes in (False, True):
        task = SmallTask(dropout=0.5)
        model = random_model(task)
        learner = task.learner(small_shard(), settings(precision=precision))
        learner.load(model)
        if writes:
            learner.graph()
        out = ModelBuffer(model.layout)
        learner.step(1, out)
        updates.append(out.data.tobytes())
    assert updates[0] == updates[1]


def canaries() -> MemorySource:
    text = np.tile(np.frombuffer(CANARY, np.uint8).astype(np.int32), (4, 1))
    pair = np.tile(np.array([1.2345678, 8.7654321], np.float32), (4, 1))
    label = np.ones(4, np.uint8)
    records = MemoryRecords({"label": label, "pair": pair, "text": text})
    splits: dict[SplitName, MemoryRecords] = {"train": records, "held-out": records}
    return MemorySource(splits)


def test_nothing_of_a_record_stands_in_a_graph() -> None:
    task = ReaderTask()
    learner = task.learner(canaries(), settings(batch_size=2))
    learner.load(task.initial_model(seed=7))
    learner.evaluate()
    graph = learner.graph()
    with zipfile.ZipFile(io.BytesIO(graph)) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for canary in (
        CANARY,
        np.frombuffer(CANARY, np.uint8).astype(np.int64).tobytes(),
        np.array([1.2345678, 8.7654321], np.float32).tobytes(),
        b"1.234",
    ):
        assert canary not in content
        assert canary not in graph
    # Nor where on which machine the task lay.
    assert __file__.encode() not in content
    assert torch.__file__.removesuffix("__init__.py").encode() not in content

    program = torch.export.load(io.BytesIO(graph))
    (args, kwargs) = program.example_inputs
    assert all(not tensor.any() for tensor in args[0].values())
    assert kwargs == {"sharp": True}


def test_inputs_may_be_nested_and_named() -> None:
    task = ReaderTask()
    learner = task.learner(canaries(), settings(batch_size=2))
    module = loaded(learner.graph())
    texts = torch.zeros((5, len(CANARY)), dtype=torch.int64)
    inputs = {"text": texts, "pair": torch.zeros((5, 2))}
    assert module(inputs, sharp=True).shape == (5, 2)


class Choosy(SmallTask):
    """Its network's course depends on values."""

    @override
    def model(self) -> nn.Module:
        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dense = nn.Linear(4, 3)

            @override
            def forward(self, points: torch.Tensor) -> torch.Tensor:
                scores: torch.Tensor = self.dense(points)
                return scores if points.sum() > 0 else -scores

        return Module()


class Rigid(SmallTask):
    """Its network knows the number of examples."""

    @override
    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        points, labels = batch
        return cross_entropy(model(points.view(-1)).view(len(points), -1), labels)

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Unflatten(0, (3, 4)), nn.Linear(4, 3))


class Counting(SmallTask):
    """Its network is told the number of examples."""

    @override
    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return cross_entropy(model(batch[0], len(batch[0])), batch[1])


class Silent(SmallTask):
    """Its loss calls a part of the model alone."""

    @override
    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        points, labels = batch
        return cross_entropy(next(model.children())(points)[:, :3], labels)


@pytest.mark.parametrize("task", [Choosy(), Rigid(), Counting(), Silent()])
def test_a_network_that_cannot_be_written_down_is_refused(task: SmallTask) -> None:
    learner = task.learner(small_shard(), settings())
    with pytest.raises(ConfigError) as caught:
        learner.graph()
    assert caught.value.code == "task-graph"


def test_a_disk_that_fails_pytorch_ends_in_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotADirectoryError

    monkeypatch.setattr(torch.export, "export", fail)
    learner = SmallTask().learner(small_shard(), settings())
    with pytest.raises(ConfigError) as caught:
        learner.graph()
    assert (caught.value.code, caught.value.got) == ("task-graph", "NotADirectoryError")
