"""What is done to whom, drawn from a seed: a run that is disturbed at random.

When exactly a blow falls is up to the machine; that a seed does not repeat. What it
repeats is the kinds, the targets and how long things last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["kill", "kill-all", "stop", "cut"]

# Shares of the blows. A link that is cut needs a network of our own.
_SHARES: dict[Kind, float] = {"kill": 0.6, "kill-all": 0.1, "stop": 0.15, "cut": 0.15}
_KILLS: frozenset[Kind] = frozenset({"kill", "kill-all"})
# A blow falls within so many rounds after the run has recovered from the last one, or
# in so many seconds whether it has or not: then it meets nodes that are just starting.
MOST_ROUNDS = 8
_MOST_SECONDS = 2.5
_SHARE_AT_ONCE = 0.25
_HELD_SECONDS = (0.1, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One disturbance.

    Attributes:
        kind: SIGKILL to one process or to all, SIGSTOP for a while, or a link that is
            cut for a while.
        target: Whom it hits; empty for all.
        after_rounds: Rounds to wait for after the run has recovered; None for a blow
            that does not wait for that.
        delay_seconds: Then, or otherwise: how long to wait.
        held_seconds: How long a stop or a cut lasts.
        at_end: Whether it waits for the last round instead: then the final model is
            evaluated, reported on, and sealed.
    """

    kind: Kind
    target: str
    after_rounds: int | None
    delay_seconds: float
    held_seconds: float = 0.0
    at_end: bool = False

    @property
    def is_kill(self) -> bool:
        """Whether processes end by it."""
        return self.kind in _KILLS


def draw_blows(
    targets: Sequence[str], *, kills: int, seed: int, with_cuts: bool
) -> tuple[Blow, ...]:
    """Returns blows until there are so many kills among them; the last is one.

    Args:
        targets: Everybody.
        kills: How many blows are to kill, one process or all.
        seed: Decides everything.
        with_cuts: Whether links can be cut.
    """
    generator = np.random.default_rng(seed)
    kinds = [kind for kind in _SHARES if with_cuts or kind != "cut"]
    shares = np.array([_SHARES[kind] for kind in kinds])
    blows: list[Blow] = []
    while sum(blow.is_kill for blow in blows) < kills:
        kind = kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]
        blows.append(_draw_blow(generator, kind, targets))
    return tuple(blows)


def draw_last(targets: Sequence[str], *, seed: int) -> Blow:
    """Returns a kill for when training is over, and the run is not yet."""
    generator = np.random.default_rng([seed, 1])
    return Blow(
        kind="kill",
        target=str(generator.choice(list(targets))),
        after_rounds=None,
        delay_seconds=float(generator.uniform(0, 0.03)),
        at_end=True,
    )


def _draw_blow(
    generator: np.random.Generator, kind: Kind, targets: Sequence[str]
) -> Blow:
    at_once = generator.random() < _SHARE_AT_ONCE
    return Blow(
        kind=kind,
        target="" if kind == "kill-all" else str(generator.choice(list(targets))),
        after_rounds=None if at_once else int(generator.integers(1, MOST_ROUNDS + 1)),
        delay_seconds=float(generator.uniform(0, _MOST_SECONDS if at_once else 0.05)),
        held_seconds=0.0
        if kind in _KILLS
        else float(generator.uniform(*_HELD_SECONDS)),
    )
