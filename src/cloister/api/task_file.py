"""The task of a federation, as the file that every node measures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import ConfigError
from cloister.federation.task import Task
from cloister.federation.task_loading import load_task, read_task_source, task_code
from cloister.plan.values import Option
from cloister.storage.records import Schema

# A class in a file; or "path/to/task.py:ClassName".
TaskLike = type | str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """A class in a file.

    Attributes:
        path: The file: it alone is copied beside the plan, measured and run.
        class_name: The class.
    """

    path: Path
    class_name: str

    def schema(self, options: Mapping[str, Option]) -> Schema:
        """Returns what a record of the task's data holds.

        Raises:
            ConfigError: If the file does not run, or the class is not a task.
        """
        task: Task = load_task(
            read_task_source(self.path),
            filename=self.path.name,
            class_name=self.class_name,
            options=options,
            simulated=True,
        )
        with task_code(self.path.name, "naming its schema", simulated=True):
            return task.schema()


def task_file(task: TaskLike) -> TaskFile:
    """Returns where a task lies.

    Raises:
        ConfigError: If it lies in no file, so that nobody could measure it.
    """
    if isinstance(task, str):
        path, _, name = task.rpartition(":")
        if not path or not name.isidentifier():
            raise ConfigError(
                "this names no task",
                code="task-unnamed",
                expected="a class, or FILE:CLASS such as 'task.py:Digits'",
                got=repr(task),
            )
        return TaskFile(path=Path(path), class_name=name)
    try:
        source = inspect.getsourcefile(task)
    except (TypeError, OSError):
        source = None
    if source is None or not Path(source).is_file():
        raise ConfigError(
            f"the class {task.__name__} lies in no file",
            code="task-without-file",
            expected="a class in a file of its own, which every node measures",
            remedy="In a notebook, begin its cell with `%%writefile task.py` and give"
            f" 'task.py:{task.__name__}'.",
        )
    return TaskFile(path=Path(source), class_name=task.__qualname__)
