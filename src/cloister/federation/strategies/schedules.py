"""Learning-rate schedules: pure functions of the round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """The learning rate over a run.

    Attributes:
        name: ``constant``, or ``cosine`` (Loshchilov and Hutter, 2017, one period).
        peak: The rate after warm-up.
        rounds: Rounds of the run.
        warmup_rounds: Rounds over which the rate rises linearly to its peak.
    """

    name: Literal["constant", "cosine"]
    peak: float
    rounds: int
    warmup_rounds: int

    def at(self, round_number: int) -> float:
        """Returns the rate of a round, counted from 1."""
        if round_number <= self.warmup_rounds:
            return self.peak * (round_number / self.warmup_rounds)
        if self.name == "constant":
            return self.peak
        done = round_number - 1 - self.warmup_rounds
        length = max(1, self.rounds - self.warmup_rounds)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * done / length))
