"""Draws the price, the outages and both loss curves; needs ``cloister[plots]``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from market import Outage, Price, minutes_of

_AN_HOUR = 60


def draw(
    path: Path,
    *,
    prices: Sequence[Price],
    bids: Mapping[str, float],
    all_outages: Sequence[Outage],
    quiet: Mapping[int, float],
    spot: Mapping[int, float],
) -> None:
    """Writes the figure; what kind of file says the name.

    Args:
        path: Where.
        prices: The trace.
        bids: Who bids how much.
        all_outages: What comes of them.
        quiet: The loss of each round on instances that nobody takes away.
        spot: The loss of each round on spot instances.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes a second

    figure = Figure(figsize=(8, 7), layout="constrained")
    price, times, rounds = figure.subplots(3, 1, height_ratios=(2, 3, 3))
    price.sharex(times)
    hours = [it.minute / _AN_HOUR for it in prices]
    price.step(hours, [it.dollars for it in prices], where="post", color="black")
    for number, (name, bid) in enumerate(bids.items()):
        price.axhline(bid, color=f"C{number}", linestyle="--", label=f"{name} bids")
    price.set_ylabel("dollars an hour")
    price.legend(loc="upper left")
    for axes in (price, times):
        for it in all_outages:
            axes.axvspan(it.begin / _AN_HOUR, it.end / _AN_HOUR, color="0.88")
    numbers = sorted(quiet)
    # The second is drawn upon the first: where they are the same, both can be seen.
    for name, curve, met, width, color in (
        ("nobody is away", quiet, (), 5.0, "0.7"),
        ("spot instances", spot, all_outages, 1.2, "C3"),
    ):
        ends = [it / _AN_HOUR for it in minutes_of(numbers, met)]
        losses = [curve.get(it, math.nan) for it in numbers]
        times.plot(ends, losses, linewidth=width, color=color, label=name)
        rounds.plot(numbers, losses, linewidth=width, color=color, label=name)
        times.set_xlim(0, max(ends))
    times.set_xlabel("hours; grey: somebody is away")
    rounds.set_xlabel("rounds")
    rounds.set_xlim(0, max(numbers))
    for axes in (times, rounds):
        axes.set_ylabel("training loss")
        axes.legend(loc="upper right")
    figure.savefig(path)
