"""The model that training starts from: the task's own, or arrays that the plan names.

The plan names a file beside it and its SHA-256, so what all parties signed is what the
server starts from. The file is read once: what was hashed is what is used. Workers
never read it; their first model comes from the server, as every other.

What this does not do: hide those arrays. They lie in the clear on the server's host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from cloister.errors import ConfigError, StorageError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.plan.plan import Plan
from cloister.plan.training import Initial

# It is held in memory whole, and once more as a model.
MAX_INITIAL_BYTES = 16 * 1024**3

Arrays = Mapping[str, NDArray[np.generic]]


def read_initial(
    initial: Initial, directory: Path, *, most_bytes: int = MAX_INITIAL_BYTES
) -> Arrays:
    """Returns the arrays of a plan's initial model by name, if they are those it pins.

    Args:
        initial: What the plan says of them.
        directory: Where the plan lies.
        most_bytes: The largest file that is read.

    Raises:
        ConfigError: If the file cannot be read (``initial-unreadable``) or is too large
            (``initial-too-large``).
        StorageError: If it is another than the plan pins (``initial-differs``), or no
            safetensors (``initial-not-safetensors``).
    """
    content = _read(directory / initial.file, most_bytes=most_bytes)
    found = hashlib.sha256(content).hexdigest()
    # Before it is parsed: nobody answers for any other bytes.
    if found != initial.sha256:
        raise StorageError(
            f"{initial.file} is not the initial model that the plan pins",
            code="initial-differs",
            expected=initial.sha256,
            got=found,
            remedy="Restore the file, or have all parties sign a plan that pins it.",
        )
    try:
        return safetensors.numpy.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise StorageError(
            f"{initial.file} does not hold a model",
            code="initial-not-safetensors",
            expected="arrays in safetensors format, of types that NumPy has",
            remedy="Save it with safetensors, as the task exports a model.",
        ) from error


def starting_model(plan: Plan, task: Task, initial: Arrays | None) -> ModelBuffer:
    """Returns the model before the first round.

    Args:
        plan: The plan.
        task: Its task.
        initial: The arrays that the plan pins; None where it pins none.

    Raises:
        ConfigError: If the task fails, gives the arrays another layout than its own
            models have (``initial-layout``), or they are not finite
            (``initial-not-finite``).
        StorageError: If the task does not know the arrays for its model.
    """
    if (initial is None) != (plan.training.initial is None):
        raise RuntimeError("a run starts from given arrays exactly as its plan says")
    file, simulated = plan.task.file, plan.simulated
    with task_code(file, "making the model", simulated=simulated):
        own = task.initial_model(seed=plan.training.seed)
    if initial is None:
        return own
    with task_code(file, "loading the initial model", simulated=simulated):
        model = task.load_exported(initial)
    # Workers lay their model out as the task makes it, and this one travels to them.
    if model.layout != own.layout:
        raise ConfigError(
            "the initial model is laid out in another way than the task's",
            code="initial-layout",
            expected=f"the layout {own.layout.digest()[:16]}",
            got=model.layout.digest()[:16],
            remedy="load_exported() and initial_model() of the task must agree.",
        )
    if not (
        np.isfinite(model.parameters).all() and np.isfinite(model.statistics).all()
    ):
        raise ConfigError(
            "the initial model is not finite",
            code="initial-not-finite",
            expected="finite values",
            got="NaN or infinity",
            remedy="Give arrays of a model that did not diverge.",
        )
    return model


def _read(path: Path, *, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise ConfigError(
            "cannot read the initial model",
            code="initial-unreadable",
            expected=f"the file that the plan names, at {path}",
            got=error.strerror or "an error",
            remedy="It lies beside the plan and is named under [training] initial.",
        ) from error
    if len(content) > most_bytes:
        raise ConfigError(
            f"the initial model {path} is too large",
            code="initial-too-large",
            expected=f"at most {most_bytes} bytes",
        )
    return content
