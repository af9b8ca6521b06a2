"""Turns the plan's task file into a task, from the very bytes that were measured.

The file is read once, by whoever measures it; what is compiled here is what the
evidence speaks of. A task is the model owner's code, so its failures are reported with
the line they came from, and with its own words only where nothing is confidential: an
exception's text may quote data, and logs lie on the host.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cloister.errors import CloisterError, ConfigError
from cloister.federation.task import Task

# A task is a page or two of code; its libraries are installed packages.
MAX_TASK_BYTES = 1024 * 1024

_METHODS = ("schema", "initial_model", "learner", "export", "load_exported")
_MODULE = "cloister_task"


def read_task_source(path: Path) -> bytes:
    """Returns the bytes of a task file, to be measured and then loaded.

    Raises:
        ConfigError: If the file is missing, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            source = file.read(MAX_TASK_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            "cannot read the task",
            code="task-unreadable",
            expected=f"the plan's task file at {path}",
            got=error.strerror or "an error",
            remedy="It lies beside the plan and is named under [task] file.",
        ) from error
    if len(source) > MAX_TASK_BYTES:
        raise ConfigError(
            f"the task {path} is too large",
            code="task-too-large",
            expected=f"at most {MAX_TASK_BYTES} bytes",
        )
    return source


def load_task(
    source: bytes,
    *,
    filename: str,
    class_name: str,
    options: Mapping[str, bool | int | float | str],
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
    module = ModuleType(_MODULE)
    # Registered, because dataclasses and pickling of names look their module up.
    sys.modules[_MODULE] = module
    with task_code(filename, "loading the file", simulated=simulated):
        exec(compile(source, filename, "exec"), module.__dict__)  # noqa: S102 - measured
    made = getattr(module, class_name, None)
    if not isinstance(made, type):
        raise ConfigError(
            f"{filename} has no class {class_name!r}",
            code="task-class",
            expected="the class named under [task] class",
            got=", ".join(n for n, v in vars(module).items() if isinstance(v, type)),
        )
    with task_code(filename, f"making {class_name}", simulated=simulated):
        task = made(**options)
    missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
    if missing:
        raise ConfigError(
            f"{class_name} in {filename} is not a task",
            code="task-class",
            expected=f"the methods {', '.join(_METHODS)}; derive it from TorchTask",
            got=f"none called {', '.join(missing)}",
        )
    loaded: Task = task
    return loaded


@contextmanager
def task_code(filename: str, doing: str, *, simulated: bool) -> Iterator[None]:
    """Runs a task's code; whatever it raises leaves as one of our errors.

    Belongs in the thread that runs the code: a `StopIteration` cannot pass through a
    future, and whoever waits for it would wait for ever.

    Raises:
        ConfigError: In place of any exception that is not ours.
    """
    try:
        yield
    except CloisterError:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == filename
        ]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        where = f" at line {lines[-1]}" if lines else ""
        words = f": {str(error)[:300]}" if simulated else ""
        raise ConfigError(
            f"{filename} failed while {doing}",
            code="task-failed",
            got=f"{type(error).__name__}{where}{words}",
            remedy="Mend the task; every party then measures it anew.",
        ) from error
