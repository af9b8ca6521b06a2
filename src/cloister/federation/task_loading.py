"""Turns the plan's task file into a task, from the very bytes that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from cloister.federation.plan_code import (
    MAX_SOURCE_BYTES,
    CodeKind,
    PlanCode,
    guarded,
    read_source,
)
from cloister.federation.task import Task
from cloister.plan.values import Option

MAX_TASK_BYTES = MAX_SOURCE_BYTES

_TASK = CodeKind(
    noun="task",
    named_under="[task]",
    methods=("schema", "initial_model", "learner", "export", "load_exported"),
    advice="derive it from TorchTask",
)


def read_task_source(path: Path) -> bytes:
    """Returns the bytes of a task file, to be measured and then loaded.

    Raises:
        ConfigError: If the file is missing, unreadable or too large.
    """
    return read_source(path, _TASK)


def load_task(
    source: bytes,
    *,
    filename: str,
    class_name: str,
    options: Mapping[str, Option],
    simulated: bool,
) -> Task:
    """Returns an instance of a task file's class.

    Args:
        source: The measured bytes of the file.
        filename: Its name, for messages.
        class_name: The class to make.
        options: Its keyword arguments.
        simulated: Whether nothing is confidential, so that errors may be quoted.

    Raises:
        ConfigError: If the file does not run, or the class is not a task.
    """
    code = PlanCode(kind=_TASK, source=source, filename=filename, simulated=simulated)
    return cast("Task", code.make(class_name, options))


def task_code(
    filename: str, doing: str, *, simulated: bool
) -> AbstractContextManager[None]:
    """Runs a task's code; whatever it raises leaves as one of our errors.

    Belongs in the thread that runs the code.

    Raises:
        ConfigError: In place of any exception that is not ours.
    """
    return guarded(_TASK, filename, doing, simulated=simulated)
