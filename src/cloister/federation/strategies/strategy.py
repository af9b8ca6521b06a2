"""What the engine asks of a strategy of the plan's own.

A strategy is a class in a file beside the plan, measured like the task. Its two methods
are pure functions over named arrays: no file, no network, no clock, no randomness, and
nothing kept on the object between calls. What the next round needs is returned as
state; the engine keeps it, and its digest stands for it.

The mean over the contributors is all it is given: one party's update never reaches it.

A user's class need not import or inherit anything from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.float32]]
State = Mapping[str, Arrays]


class Strategy(Protocol):
    """How the mean of a round's updates becomes a new model."""

    def initial(self, parameters: Arrays) -> State:
        """Returns the state before the first round, arrays by name in named slots.

        Slots, names and shapes are the strategy's choice, and stay as they are here.

        Args:
            parameters: The parameters training starts from, read-only.
        """
        ...

    def step(
        self,
        parameters: Arrays,
        state: State,
        *,
        mean: Arrays,
        rate: float,
        round_number: int,
    ) -> tuple[Arrays, State]:
        """Returns new parameters and state, with the same names and shapes, float32.

        All arrays given are read-only.

        Args:
            parameters: The parameters of this round.
            state: What the last step, or `initial`, returned.
            mean: Mean gradient, or in `fedavg` the mean pseudo-gradient, for each
                parameter.
            rate: The learning rate of this round.
            round_number: Counts from 1.
        """
        ...
