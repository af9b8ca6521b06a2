from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from examples.softmax import task as softmax_task
from tests.support.running import Run

from cloister.errors import ConfigError, StorageError
from cloister.federation.task import Task
from cloister.federation.task_loading import (
    MAX_TASK_BYTES,
    load_task,
    read_task_source,
    task_code,
)

SOURCE = Path(softmax_task.__file__).read_bytes()
OPTIONS: dict[str, bool | int | float | str] = {"features": 4, "classes": 2}


def load(
    source: bytes | str,
    *,
    class_name: str = "Softmax",
    options: dict[str, bool | int | float | str] | None = None,
    simulated: bool = True,
) -> Task:
    return load_task(
        source.encode() if isinstance(source, str) else source,
        filename="task.py",
        class_name=class_name,
        options=OPTIONS if options is None else options,
        simulated=simulated,
    )


def refusal(source: bytes | str, *, simulated: bool = True) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(source, simulated=simulated)
    return caught.value


def test_a_task_file_makes_its_task() -> None:
    task = load(SOURCE)
    assert task.schema().record_bytes == 5
    assert task.initial_model(seed=1).layout.parameter_count == 10


def test_two_loads_of_one_file_are_two_tasks() -> None:
    assert type(load(SOURCE)) is not type(load(SOURCE))


def test_a_syntax_error_shows_its_line() -> None:
    error = refusal("x = 1\n\ny = (\n")
    assert error.code == "task-failed"
    assert error.what == "task.py failed while loading the file"
    assert error.got.startswith("SyntaxError at line 3")


def test_an_exception_shows_the_line_of_the_task_it_came_through() -> None:
    source = "import json\n\n\ndef f():\n    json.loads('nonsense')\n\n\nf()\n"
    error = refusal(source)
    assert error.got.startswith("JSONDecodeError at line 5: Expecting value")


def test_an_exceptions_words_stay_inside_unless_all_is_simulated() -> None:
    source = "patient = 'Ada, 1815'\n\nraise ValueError(patient)\n"
    assert refusal(source).got == "ValueError at line 3: Ada, 1815"
    confidential = refusal(source, simulated=False)
    assert confidential.got == "ValueError at line 3"
    assert "Ada" not in str(confidential)


def test_long_words_are_cut() -> None:
    assert len(refusal("raise ValueError('x' * 10_000)").got) < 400


def test_a_missing_class_is_answered_with_those_there_are() -> None:
    error = refusal("class One: pass\nclass Two: pass\nSoftmax = 3\n")
    assert error.what == "task.py has no class 'Softmax'"
    assert error.got == "One, Two"


def test_a_class_that_is_no_task_says_what_it_lacks() -> None:
    error = refusal(
        "class Softmax:\n"
        "    def __init__(self, **_): pass\n"
        "    def schema(self): pass\n"
        "    learner = None\n"
    )
    assert error.code == "task-class"
    assert error.got == "none called initial_model, learner, export, load_exported"


@pytest.mark.parametrize("options", [{}, {**OPTIONS, "depth": 1}, {"self": 1}])
def test_options_the_class_does_not_take_are_refused(
    options: dict[str, bool | int | float | str],
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SOURCE, options=options)
    assert caught.value.what == "task.py failed while making Softmax"
    assert caught.value.got.startswith("TypeError")


@pytest.mark.parametrize(
    "source",
    [
        b"\0",
        b"\xff\xfe\xfd",
        b"# coding: nonsense\n",
        b"(" * 5000,
        b"x" * 100 + b" = = 1",
        b"raise SystemExit(0)",
        b"exit()",
        b"raise StopIteration",
        b"raise RecursionError",
        b"def f(): f()\nf()",
        b"import cloister_has_no_such_module",
        b"raise BaseExceptionGroup('two', [ValueError(), TypeError()])",
    ],
)
def test_whatever_a_file_does_ends_in_a_config_error(source: bytes) -> None:
    assert refusal(source).code == "task-failed"


def test_our_own_errors_pass_as_they_are() -> None:
    with (
        pytest.raises(StorageError, match="no such split"),
        task_code("task.py", "reading", simulated=False),
    ):
        raise StorageError("no such split", code="split-missing")


def test_an_interruption_is_no_failure_of_the_task() -> None:
    for kind in (KeyboardInterrupt, asyncio.CancelledError):
        with pytest.raises(kind), task_code("task.py", "training", simulated=True):
            raise kind


def test_a_stop_iteration_in_a_thread_does_not_hang_its_caller(run: Run) -> None:
    """It cannot pass through a future, so it must not try."""

    def step() -> object:
        with task_code("task.py", "training", simulated=True):
            return next(iter([]))

    with pytest.raises(ConfigError) as caught:
        run(asyncio.to_thread(step))
    assert caught.value.got.startswith("StopIteration")


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_task_source(tmp_path / "task.py")
    assert caught.value.code == "task-unreadable"
    assert str(tmp_path) in caught.value.expected


def test_an_oversized_task_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_bytes(bytes(MAX_TASK_BYTES))
    assert len(read_task_source(path)) == MAX_TASK_BYTES
    path.write_bytes(bytes(MAX_TASK_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        read_task_source(path)
    assert caught.value.code == "task-too-large"


def test_the_tests_own_task_exports_what_it_can_load() -> None:
    task = softmax_task.Softmax(4, 2)
    model = task.initial_model(seed=3)
    again = task.load_exported(task.export(model))
    assert again.data.tobytes() == model.data.tobytes()
    with pytest.raises(StorageError):
        task.load_exported({"weights": np.zeros((2, 4))})
