"""Spot instances: a price, what is bid, and when whose instance is taken away.

Whoever bids less than the price loses the instance at once, without a warning, and gets
one again when the price has come down. All workers take part in every round, so
training stands still as long as anybody is away: in the simulated time of this file a
round takes a minute, and no round is done in a minute of an outage.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MINUTES_A_ROUND = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an instance costs from a minute on.

    Attributes:
        minute: Since the beginning.
        dollars: An hour.
    """

    minute: int
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A time in which somebody is away.

    Attributes:
        begin: Its first minute.
        end: The first minute after it.
        away: Who lost the instance meanwhile, in order.
    """

    begin: int
    end: int
    away: tuple[str, ...]


def read_prices(path: Path) -> tuple[Price, ...]:
    """Returns a trace: a CSV file with the columns minute and dollars_per_hour."""
    with path.open(newline="") as file:
        return tuple(
            Price(minute=int(row["minute"]), dollars=float(row["dollars_per_hour"]))
            for row in csv.DictReader(file)
        )


def outages(prices: Sequence[Price], bids: Mapping[str, float]) -> tuple[Outage, ...]:
    """Returns when somebody is away.

    Args:
        prices: The trace, in the order of time.
        bids: Who bids how many dollars an hour.
    """
    found: list[Outage] = []
    begin, away = 0, dict[str, None]()  # a set that keeps the order
    for price in prices:
        out = [name for name, bid in bids.items() if bid < price.dollars]
        if out and not away:
            begin = price.minute
        if away and not out:
            found.append(Outage(begin=begin, end=price.minute, away=tuple(away)))
            away = {}
        away |= dict.fromkeys(out)
    return tuple(found)


def rounds_before(outage: Outage, all_of_them: Sequence[Outage]) -> int:
    """Returns how many rounds are done when an outage begins."""
    lost = sum(it.end - it.begin for it in all_of_them if it.end <= outage.begin)
    return (outage.begin - lost) // MINUTES_A_ROUND


def minutes_of(rounds: Sequence[int], all_of_them: Sequence[Outage]) -> list[int]:
    """Returns the minute in which each of some rounds ends."""
    found = []
    for number in rounds:
        lost = sum(
            it.end - it.begin
            for it in all_of_them
            if rounds_before(it, all_of_them) < number
        )
        found.append(number * MINUTES_A_ROUND + lost)
    return found
