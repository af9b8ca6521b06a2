"""A task is a class in a file, for a file is what nodes measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.softmax import task as softmax_task

from cloister.api.task_file import task_file
from cloister.errors import ConfigError

SOFTMAX = Path(softmax_task.__file__)


def test_a_class_is_found_in_its_file() -> None:
    found = task_file(softmax_task.Softmax)
    assert found == task_file(f"{SOFTMAX}:Softmax")
    assert (found.path, found.class_name) == (SOFTMAX, "Softmax")
    schema = found.schema({"features": 4, "classes": 2})
    assert [field.shape for field in schema.fields] == [(), (4,)]


def test_a_class_of_no_file_is_refused_with_what_a_notebook_can_do() -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    exec("class Cell: pass", scope)  # noqa: S102 - as a notebook's cell does
    cell = scope["Cell"]
    assert isinstance(cell, type)
    cell.__module__ = "a_cell_of_a_notebook"
    with pytest.raises(ConfigError) as caught:
        task_file(cell)
    assert caught.value.code == "task-without-file"
    assert "%%writefile" in caught.value.remedy


@pytest.mark.parametrize("text", ["task.py", "task.py:", ":Task", "task.py:not a name"])
def test_what_names_no_class_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_file(text)
    assert caught.value.code == "task-unnamed"


def test_options_that_the_task_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        task_file(f"{SOFTMAX}:Softmax").schema({"colour": True})
    assert caught.value.code == "task-failed"
