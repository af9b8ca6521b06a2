"""Learning-rate schedules: pure functions of the round.

A schedule gives a factor of the plan's learning rate. It rises linearly to 1 over
`warmup_rounds`, and from there follows its own curve over the rounds that are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override


class Schedule(Protocol):
    """How the learning rate changes over the rounds."""

    def factor(self, round_number: int) -> float:
        """Returns the share of the plan's rate in a round, from 0 to 1.

        Args:
            round_number: Counts from 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """The learning rate over a run.

    Attributes:
        peak: The plan's rate.
        schedule: Its share in each round.
    """

    peak: float
    schedule: Schedule

    def at(self, round_number: int) -> float:
        """Returns the rate of a round, counted from 1."""
        return self.peak * self.schedule.factor(round_number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Schedule):
    """The same rate in all rounds after the warm-up.

    Attributes:
        warmup_rounds: Rounds over which the rate rises.
    """

    warmup_rounds: int = 0

    @override
    def factor(self, round_number: int) -> float:
        return _warmup(round_number, self.warmup_rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Schedule):
    """The rate is multiplied by `ratio` after every so many rounds.

    Attributes:
        every_rounds: Rounds between two steps; they count from the end of the warm-up.
        ratio: What each step leaves.
        warmup_rounds: Rounds over which the rate rises.
    """

    every_rounds: int
    ratio: float
    warmup_rounds: int = 0

    @override
    def factor(self, round_number: int) -> float:
        done = max(0, round_number - 1 - self.warmup_rounds)
        steps = done // self.every_rounds
        return _warmup(round_number, self.warmup_rounds) * self.ratio**steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 towards 0 (Loshchilov and Hutter, 2017, one period).

    Attributes:
        rounds: Rounds of the run.
        warmup_rounds: Rounds over which the rate rises.
    """

    rounds: int
    warmup_rounds: int = 0

    @override
    def factor(self, round_number: int) -> float:
        if round_number <= self.warmup_rounds:
            return _warmup(round_number, self.warmup_rounds)
        done = _progress(round_number, self.rounds, self.warmup_rounds)
        return 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, slots=True, kw_only=True)
class Poly(Schedule):
    """A power of the share of rounds that is left, from 1 towards `end_fraction`.

    Attributes:
        rounds: Rounds of the run.
        power: 1 is a straight line.
        end_fraction: Where it would arrive in the round after the last.
        warmup_rounds: Rounds over which the rate rises.
    """

    rounds: int
    power: float = 1.0
    end_fraction: float = 0.0
    warmup_rounds: int = 0

    @override
    def factor(self, round_number: int) -> float:
        if round_number <= self.warmup_rounds:
            return _warmup(round_number, self.warmup_rounds)
        left = 1.0 - _progress(round_number, self.rounds, self.warmup_rounds)
        return self.end_fraction + (1.0 - self.end_fraction) * math.pow(
            left, self.power
        )


def _warmup(round_number: int, warmup_rounds: int) -> float:
    """Returns the rising share of a round within the warm-up, 1 after it."""
    return min(1.0, round_number / warmup_rounds) if warmup_rounds else 1.0


def _progress(round_number: int, rounds: int, warmup_rounds: int) -> float:
    """Returns which share of the rounds after the warm-up is done, below 1."""
    return (round_number - 1 - warmup_rounds) / max(1, rounds - warmup_rounds)
