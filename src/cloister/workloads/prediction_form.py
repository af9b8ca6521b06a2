"""What a task predicts, checked before it is handed on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError

Arrays = Mapping[str, NDArray[np.generic]]


class PredictionForm:
    """The form that all of a task's predictions have; refuses those that have another.

    They come piece by piece. All pieces have the same names, types and shapes of a
    row, and one row a record.
    """

    def __init__(self) -> None:
        self._form: dict[str, str] | None = None

    def checked(self, found: Arrays, *, examples: int) -> Arrays:
        """Returns `found`, the predictions of the next `examples` records.

        Raises:
            ConfigError: If they do not go with the records, or not with those before
                them (``task-predict``).
        """
        for name, array in found.items():
            if array.ndim < 1 or len(array) != examples:
                raise _error(
                    f"one row of {name} for each of {examples} records",
                    got=f"an array of shape {array.shape}",
                )
        form = {n: f"{a.dtype} {[*a.shape[1:]]}" for n, a in found.items()}
        if not form:
            raise _error("arrays by name", got="none")
        if self._form is None:
            self._form = form
        if form != self._form:
            raise _error(f"for all records {self._form}", got=f"{form}")
        return found


def _error(expected: str, *, got: str) -> ConfigError:
    return ConfigError(
        "the task's predictions do not go with the records",
        code="task-predict",
        expected=expected,
        got=got,
        remedy="Correct predict() in the task.",
    )
