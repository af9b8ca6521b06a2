"""The tasks in ``docs/how-to/write-a-task.md``, as somebody copies them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords, MemorySource
from tests.unit.workloads.small_task import settings

from cloister.federation.layout import ModelBuffer
from cloister.federation.task import SteppingLearner, Task
from cloister.federation.task_loading import load_task
from cloister.plan.values import Option
from cloister.storage.records import Schema, SplitName

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "write-a-task.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def written(name: str, options: dict[str, Option]) -> Task:
    """Returns a task of the page, out of all its code in one file."""
    return load_task(
        "\n".join(BLOCKS).encode(),
        filename="task.py",
        class_name=name,
        options=options,
        simulated=True,
    )


def source_for(schema: Schema) -> MemorySource:
    generator = np.random.default_rng(0)

    def column(name: str, count: int) -> NDArray[np.generic]:
        field = next(f for f in schema.fields if f.name == name)
        values = generator.integers(0, field.below or 100, (count, *field.shape))
        return values.astype(field.dtype)

    def records(count: int) -> MemoryRecords:
        columns = {f.name: column(f.name, count) for f in schema.fields}
        # The records in memory count by this field.
        columns.setdefault("label", np.zeros(count, np.uint8))
        return MemoryRecords(columns)

    splits: dict[SplitName, MemoryRecords] = {
        "train": records(20),
        "held-out": records(5),
    }
    return MemorySource(splits)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Digits", {"hidden": 8}),
        ("NoisyDigits", {"hidden": 8}),
        ("DigitsWithAdam", {"hidden": 8}),
        ("Line", {}),
    ],
)
def test_a_task_of_the_page_trains_and_is_exported(
    name: str, options: dict[str, Option]
) -> None:
    task = written(name, options)
    model = task.initial_model(seed=7)
    learner = task.learner(source_for(task.schema()), settings())
    learner.load(model)
    out = ModelBuffer(model.layout)
    assert learner.step(1, out).examples == 8
    assert out.parameters.any()
    evaluation = learner.evaluate()
    assert evaluation.examples == 5
    assert "loss" in evaluation.sums
    assert np.array_equal(task.load_exported(task.export(model)).data, model.data)


def test_the_pages_optimiser_takes_local_steps() -> None:
    task = written("DigitsWithAdam", {"hidden": 8})
    learner = task.learner(source_for(task.schema()), settings())
    assert isinstance(learner, SteppingLearner)
    learner.begin_steps(rate=0.002)
    assert learner.take_step(1).examples == 8


def test_the_page_has_a_short_task() -> None:
    # About ten lines more than a loop of one's own would have anyway.
    assert len(BLOCKS[0].splitlines()) < 45
