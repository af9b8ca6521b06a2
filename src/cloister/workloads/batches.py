"""A party's examples in batches, as a learner asks for them, whatever the framework.

Which examples a step has follows from the plan, the party's name and the step's number.
The records of the next batch are read, and decrypted, by another thread while this one
computes: that changes when they are read, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.federation.sampling import Sampler
from cloister.federation.task import LearnerSettings
from cloister.storage.read_ahead import SourceAhead
from cloister.storage.records import DataSource

# Fixed, since the size of a batch decides how its sums are rounded.
EVALUATION_BATCH = 250

Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class Batches(Protocol[Batch_co]):
    """The examples of one split, ready for the model."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batch(
        self, indices: NDArray[np.int64], generator: np.random.Generator
    ) -> Batch_co:
        """Returns the examples at `indices`.

        Args:
            indices: Which examples.
            generator: Source of all randomness, so that a round can be redone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a step has, before anything is read.

    Attributes:
        number: The step's.
        indices: Its examples: (batch_size,).
        generator: Source of its randomness.
        seed: For the framework's own randomness.
    """

    number: int
    indices: NDArray[np.int64]
    generator: np.random.Generator
    seed: int


class Examples(Generic[Batch]):
    """A party's training and held-out examples.

    Args:
        source: The party's data set.
        train: Makes the training examples of a data set.
        held_out: Makes the held-out ones.
        settings: What the plan fixes.

    Attributes:
        held_out_count: Number of held-out examples.

    Raises:
        StorageError: If there are no examples to train on (``data-empty``).
    """

    def __init__(
        self,
        source: DataSource,
        *,
        train: Callable[[DataSource], Batches[Batch]],
        held_out: Callable[[DataSource], Batches[Batch]],
        settings: LearnerSettings,
    ) -> None:
        self._source = SourceAhead(source)
        self._train = train(self._source)
        self._held_out = held_out(self._source)
        self.held_out_count = len(self._held_out)
        if not len(self._train):
            raise StorageError(
                f"{settings.party} has no examples to train on",
                code="data-empty",
                remedy="Give the party some data, or leave it out of the plan.",
            )
        self._sampler = Sampler(
            examples=len(self._train),
            batch_size=settings.batch_size,
            seed=settings.seed,
            party=settings.party,
        )

    def draw(self, number: int) -> Draw:
        """Returns what step `number` has, counted from 1."""
        generator = self._sampler.augmentation(number)
        return Draw(
            number=number,
            indices=self._sampler.indices(number),
            # Drawn before the task draws, so it does not depend on how much that takes.
            seed=int(generator.integers(2**63)),
            generator=generator,
        )

    def train_batch(self, draw: Draw) -> Batch:
        """Returns a step's batch; the next step's records are read meanwhile.

        Raises:
            StorageError: If a record cannot be read whole and authentic.
        """
        batch = self._train.batch(draw.indices, draw.generator)
        # Most likely the next step is this party's too. If not, that one reads for
        # itself.
        following = self._sampler.indices(draw.number + 1)
        self._source.split("train").expect(following)
        return batch

    def held_out_indices(self) -> Iterator[NDArray[np.int64]]:
        """Yields the held-out examples in order, in pieces of fixed size."""
        for start in range(0, self.held_out_count, EVALUATION_BATCH):
            yield self._piece(start)

    def held_out_batch(self, indices: NDArray[np.int64]) -> Batch:
        """Returns one piece's batch; the next piece's records are read meanwhile.

        Raises:
            StorageError: If a record cannot be read whole and authentic.
        """
        generator = np.random.default_rng(int(indices[0]))
        batch = self._held_out.batch(indices, generator)
        following = self._piece(int(indices[-1]) + 1)
        if len(following):
            self._source.split("held-out").expect(following)
        return batch

    def _piece(self, start: int) -> NDArray[np.int64]:
        return np.arange(start, min(start + EVALUATION_BATCH, self.held_out_count))
