"""Who has a seat in a round: a draw that anybody can repeat.

Names are ranked by a hash of the plan's seed, the round and the name; the first ones
have seats. Whoever knows the plan and who was drawn among can check it (`rounds.md`).
It is fair, not secret: the seed is in the plan, so everybody can foretell the draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cbor2

_LABEL = "cloister/cohort/1"


def draw(
    names: Sequence[str], *, seats: int, seed: int, round_number: int
) -> tuple[str, ...]:
    """Returns the names that have a seat, in the order of `names`.

    Who is drawn depends neither on that order nor on earlier draws. Leaving a name out
    that was not drawn changes nothing.

    Args:
        names: Who may have a seat, each once.
        seats: How many seats there are; where there are enough, everybody has one.
        seed: The plan's seed.
        round_number: The round, counted from 1.
    """
    if len(names) <= seats:
        return tuple(names)

    def rank(name: str) -> bytes:
        return hashlib.sha256(
            cbor2.dumps([_LABEL, seed, round_number, name], canonical=True)
        ).digest()

    drawn = set(sorted(names, key=rank)[:seats])
    return tuple(name for name in names if name in drawn)
