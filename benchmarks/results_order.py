"""What the rows of the results share: how they are ordered, and how they are put."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cloister.cli.recipes import Recipe
from reporting import Figure
from results_row import Row, plan_in_words
from results_run import Outcome

ROOT = Path(__file__).parents[1]
SEEDS = (7, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a row is made with.

    Attributes:
        data: Holds ``cifar-10`` and ``mnist``.
        quick: Whether a few rounds will do.
    """

    data: Path
    quick: bool

    def shorten(self, recipe: Recipe, *, rounds: int = 4) -> Recipe:
        """Returns the recipe, cut short where it is to be."""
        return recipe.for_rounds(rounds) if self.quick else recipe

    @property
    def seeds(self) -> Sequence[int]:
        """What to train with."""
        return SEEDS[:1] if self.quick else SEEDS

    def reach(self, words: str) -> str:
        """Returns what is asked for: nothing of a run that was cut short."""
        return "" if self.quick else words


def row_of(  # noqa: PLR0913 - one for each thing that a row says
    order: Order,
    outcomes: Sequence[Outcome],
    *,
    name: str,
    title: str,
    data: str,
    command: str,
    figures: list[Figure],
) -> Row:
    """Returns a row about some runs of one plan, but for seeds."""
    first = outcomes[0]
    seeds = dict.fromkeys(it.plan.training.seed for it in outcomes)
    return Row(
        name=name,
        title=title,
        data=data,
        split=first.split,
        seeds=list(seeds),
        epochs=first.epochs,
        plan=plan_in_words(first.plan),
        command=command,
        seconds=statistics.median(it.seconds for it in outcomes),
        figures=figures,
        date=today(),
        quick=order.quick,
    )


def seeded(recipe: Recipe, *, order: Order, seed: int) -> Recipe:
    """Returns the recipe with a seed, cut short where it is to be."""
    return order.shorten(replace(recipe, seed=seed))


def today() -> str:
    """Returns the date."""
    return f"{datetime.now(UTC):%Y-%m-%d}"
