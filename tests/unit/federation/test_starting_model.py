from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from examples.softmax.task import Softmax
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.engine_in_memory import train
from tests.support.plan_tree import CLASSES, FEATURES, WORKERS, plan_tree, put, toml_of
from tests.support.records_in_memory import clouds
from typing_extensions import override

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.starting_model import Arrays, read_initial, starting_model
from cloister.federation.task import Task
from cloister.plan.plan import Plan, parse_plan
from cloister.plan.training import Initial

FILE = "start.safetensors"
TASK = Softmax(FEATURES, CLASSES)


def given_arrays(seed: int = 3) -> dict[str, NDArray[np.generic]]:
    return TASK.export(TASK.initial_model(seed=seed))


def pinned(content: bytes, directory: Path) -> Initial:
    (directory / FILE).write_bytes(content)
    return Initial(file=FILE, sha256=hashlib.sha256(content).hexdigest())


def plan_of(*, rounds: int = 12, initial: bool = True) -> Plan:
    tree = put(plan_tree(), ("training", "rounds"), rounds)
    if initial:
        put(tree, ("training", "initial"), {"file": FILE, "sha256": 64 * "0"})
    return parse_plan(toml_of(tree))


def refusal(initial: Initial, directory: Path, **limits: int) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        read_initial(initial, directory, **limits)
    return caught.value


def start_refused(arrays: Arrays, task: Task = TASK) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        starting_model(plan_of(), task, arrays)
    return caught.value


def test_the_arrays_that_the_plan_pins_are_read(tmp_path: Path) -> None:
    arrays = given_arrays()
    read = read_initial(pinned(safetensors.numpy.save(arrays), tmp_path), tmp_path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_another_file_than_the_plan_pins_is_refused(tmp_path: Path) -> None:
    initial = pinned(safetensors.numpy.save(given_arrays()), tmp_path)
    other = safetensors.numpy.save(given_arrays(seed=4))
    (tmp_path / FILE).write_bytes(other)
    error = refusal(initial, tmp_path)
    assert isinstance(error, StorageError)
    assert error.code == "initial-differs"
    assert error.expected == initial.sha256
    assert error.got == hashlib.sha256(other).hexdigest()


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    initial = pinned(safetensors.numpy.save(given_arrays()), tmp_path)
    size = (tmp_path / FILE).stat().st_size
    assert read_initial(initial, tmp_path, most_bytes=size)
    error = refusal(initial, tmp_path, most_bytes=size - 1)
    assert error.code == "initial-too-large"
    (tmp_path / FILE).unlink()
    error = refusal(initial, tmp_path)
    assert isinstance(error, ConfigError)
    assert error.code == "initial-unreadable"


@given(content=st.binary(max_size=200), header=st.binary(max_size=100))
def test_whatever_is_pinned_that_is_no_safetensors_ends_in_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, header: bytes
) -> None:
    directory = tmp_path_factory.mktemp("pinned")
    for text in (content, len(header).to_bytes(8, "little") + header + content):
        with suppress(StorageError):
            assert read_initial(pinned(text, directory), directory) == {}


def test_arrays_of_a_type_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    header = b'{"weights":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    error = refusal(pinned(content, tmp_path), tmp_path)
    assert error.code == "initial-not-safetensors"


def test_a_run_starts_from_the_tasks_own_model_unless_the_plan_names_another() -> None:
    own = TASK.initial_model(seed=plan_of().training.seed)
    started = starting_model(plan_of(initial=False), TASK, None)
    assert np.array_equal(started.data, own.data)
    started = starting_model(plan_of(), TASK, given_arrays())
    assert np.array_equal(started.data, TASK.initial_model(seed=3).data)


def test_arrays_are_given_exactly_when_the_plan_names_them() -> None:
    for plan, arrays in ((plan_of(), None), (plan_of(initial=False), given_arrays())):
        with pytest.raises(RuntimeError):
            starting_model(plan, TASK, arrays)


def test_arrays_of_another_model_are_refused() -> None:
    arrays = given_arrays()
    del arrays["bias"]
    for wrong in (arrays, {**given_arrays(), "bias": np.zeros(CLASSES + 1)}):
        assert start_refused(wrong).code == "model-foreign"


@pytest.mark.parametrize("name", ["weights", "mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    arrays = given_arrays()
    arrays[name].reshape(-1)[-1] = value
    assert start_refused(arrays).code == "initial-not-finite"


def test_a_task_that_lays_the_arrays_out_in_another_way_is_refused() -> None:
    class Careless(Softmax):
        @override
        def load_exported(
            self, arrays: Mapping[str, NDArray[np.generic]]
        ) -> ModelBuffer:
            return ModelBuffer(layout_of(dict(arrays), {}))

    error = start_refused(given_arrays(), Careless(FEATURES, CLASSES))
    assert error.code == "initial-layout"


def test_what_a_task_raises_over_the_arrays_leaves_as_our_error() -> None:
    class Broken(Softmax):
        @override
        def load_exported(
            self, arrays: Mapping[str, NDArray[np.generic]]
        ) -> ModelBuffer:
            raise ZeroDivisionError

    error = start_refused(given_arrays(), Broken(FEATURES, CLASSES))
    assert error.code == "task-failed"


def test_training_goes_on_from_a_model_that_was_trained() -> None:
    sources = {
        name: clouds(seed=seed, features=FEATURES, classes=CLASSES)
        for seed, name in enumerate(WORKERS, 1)
    }
    first = train(plan_of(initial=False), TASK, sources)
    second = train(plan_of(), TASK, sources, initial=TASK.export(first.model))
    assert second.losses[0] < 0.8 * first.losses[0]
    assert second.metrics["loss"] < first.metrics["loss"]
