"""The sum of a round's updates, and their mean: every update weighs the same.

`OrderedSum` adds float32 in the order given: its bits are those of the plain loop over
the parties, and another order may give others. `ExactSum` gives the same bits in any
order, for twice the memory and about three times the time. Either is allocated once,
and reads an update block by block, freeing each chunk as it is consumed. The last
updates need not be added: the mean takes them in as it is read, which saves a pass over
a model's memory for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cloister.federation.blocks import blocks_of
from cloister.federation.exact_sum import ExactSum
from cloister.federation.layout import Layout
from cloister.federation.updates import Update, narrowest
from cloister.federation.value_limits import FINITE, ValueLimits
from cloister.federation.wire_format import Vector

__all__ = ["ExactSum", "OrderedMean", "OrderedSum"]


class OrderedSum:
    """Adds updates in the order given; what overflows is infinite.

    Args:
        layout: Of the updates.

    Attributes:
        count: How many were added since the last reset.
        limits: What the updates must keep to.
    """

    limits: ValueLimits = FINITE

    def __init__(self, layout: Layout) -> None:
        # Not touched before there is something to add: a round of two updates, both
        # pending, costs no memory here.
        self._parameters: Vector = np.empty(layout.parameter_count, np.float32)
        self._statistics: NDArray[np.float64] = np.empty(
            layout.statistic_count, np.float64
        )
        self.count = 0

    def reset(self) -> None:
        """Makes it empty."""
        self.count = 0

    def wipe(self) -> None:
        """Makes it empty, and overwrites what it held: it may be one update."""
        self.reset()
        self._parameters.fill(0)
        self._statistics.fill(0)

    def add(self, update: Update) -> None:
        """Adds an update and releases it."""
        if self.count:
            self._add(update)
        else:
            self._copy(update)
        update.release()
        self.count += 1

    def closing(self, pending: Sequence[Update] = ()) -> OrderedMean:
        """Returns the mean over what was added and `pending`, in that order.

        It reads all of them until it is dropped; nothing may be added meanwhile.

        Raises:
            RuntimeError: If there is nothing.
        """
        if not self.count + len(pending):
            raise RuntimeError("a mean needs an update")
        added = (self._parameters, self._statistics) if self.count else None
        return OrderedMean(added, pending, count=self.count + len(pending))

    def _add(self, update: Update) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for block in self._blocks(update):
                total = self._parameters[block]
                np.add(total, update.parameters(block.start, block.stop), out=total)
                update.release_before(block.stop)
            np.add(self._statistics, update.statistics, out=self._statistics)

    def _copy(self, update: Update) -> None:
        for block in self._blocks(update):
            self._parameters[block] = update.parameters(block.start, block.stop)
            update.release_before(block.stop)
        self._statistics[...] = update.statistics

    def _blocks(self, update: Update) -> Iterator[slice]:
        return blocks_of(0, len(self._parameters), within=update.values_per_chunk)


class OrderedMean:
    """The mean of a sum and of updates not added to it; read by several threads.

    Args:
        added: Sum of parameters and of statistics; None if there is none.
        pending: What is added to it, in order, as the mean is read.
        count: Number of updates in all.
    """

    def __init__(
        self,
        added: tuple[Vector, NDArray[np.float64]] | None,
        pending: Sequence[Update],
        *,
        count: int,
    ) -> None:
        self._added = added
        self._pending = tuple(pending)
        self._count = count

    def mean(self, start: int, stop: int) -> Vector:
        """Returns the mean of parameters `start` to `stop`, as an array of its own."""
        means = np.empty(stop - start, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for block in blocks_of(start, stop, within=narrowest(self._pending)):
                self._fold(block, out=means[block.start - start : block.stop - start])
        return means

    def statistics(self) -> NDArray[np.float64]:
        """Returns the mean of all statistics, as an array of its own."""
        parts = [] if self._added is None else [self._added[1]]
        parts += [update.statistics for update in self._pending]
        total = parts[0].copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for part in parts[1:]:
                total += part
        total /= self._count
        return total

    def _fold(self, block: slice, *, out: Vector) -> None:
        parts = [] if self._added is None else [self._added[0][block]]
        parts += [u.parameters(block.start, block.stop) for u in self._pending]
        total = parts[0]
        for part in parts[1:]:
            total = np.add(total, part, out=out)
        np.divide(total, np.float32(self._count), out=out)
