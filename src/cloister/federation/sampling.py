"""Which examples a worker uses in a round: a pure function of the plan.

Each epoch is one permutation of the party's examples, and rounds cut consecutive
batches out of the endless row of epochs. Nothing is remembered between rounds, so a
worker that restarts draws the very batch it would have drawn. A party's millions of
examples cost no more memory than a batch: their order is computed as it is drawn.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloister.federation.permutation import Permutation

# Up to here an epoch's order lies in memory: 8 MiB. Another number would change the
# draw of runs in progress.
IN_MEMORY_EXAMPLES: Final = 2**20

_SHUFFLE, _AUGMENT = 1, 2


def _generator(
    *, seed: int, party: str, purpose: int, index: int
) -> np.random.Generator:
    sequence = _sequence(seed=seed, party=party, purpose=purpose, index=index)
    return np.random.Generator(np.random.PCG64(sequence))


def _sequence(
    *, seed: int, party: str, purpose: int, index: int
) -> np.random.SeedSequence:
    name = int.from_bytes(hashlib.sha256(party.encode()).digest()[:8], "little")
    return np.random.SeedSequence([seed, name, purpose, index])


class Sampler:
    """Draws the batch of each round.

    Args:
        examples: Number of examples the party has.
        batch_size: Examples a round.
        seed: The plan's seed.
        party: The party's name, so that no two parties draw alike.
    """

    def __init__(
        self, *, examples: int, batch_size: int, seed: int, party: str
    ) -> None:
        if examples < 1 or batch_size < 1:
            raise ValueError("a sampler needs at least one example and one a batch")
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._party = party
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, np.int64)

    def indices(self, round_number: int) -> NDArray[np.int64]:
        """Returns the examples of a round, counted from 1: (batch_size,)."""
        start = (round_number - 1) * self._batch_size
        stop = start + self._batch_size
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self._examples)
            count = min(stop - start, self._examples - offset)
            piece = self._drawn(epoch, offset, count)
            parts.append(piece)
            start += len(piece)
        return np.concatenate(parts)

    def augmentation(self, round_number: int) -> np.random.Generator:
        """Returns the generator for a round's own randomness (crops, dropout)."""
        return _generator(
            seed=self._seed, party=self._party, purpose=_AUGMENT, index=round_number
        )

    def _drawn(self, epoch: int, offset: int, count: int) -> NDArray[np.int64]:
        """Returns consecutive examples of an epoch's order: (count,)."""
        if self._examples <= IN_MEMORY_EXAMPLES:
            return self._permutation(epoch)[offset : offset + count]
        sequence = _sequence(
            seed=self._seed, party=self._party, purpose=_SHUFFLE, index=epoch
        )
        order = Permutation(self._examples, seed=sequence)
        return order.at(np.arange(offset, offset + count))

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            generator = _generator(
                seed=self._seed, party=self._party, purpose=_SHUFFLE, index=epoch
            )
            self._order = generator.permutation(self._examples)
            self._epoch = epoch
        return self._order
