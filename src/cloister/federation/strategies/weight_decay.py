"""Where weight decay applies, block by block, without a mask as large as the model."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, groupby

import numpy as np

from cloister.federation.layout import Layout
from cloister.federation.strategies.optimizers import Vector


class WeightDecay:
    """The decay of each parameter of a layout.

    Args:
        layout: Says which arrays it applies to.
        weight_decay: Its value there.
        block: The most values that are asked for at once.
    """

    def __init__(self, layout: Layout, weight_decay: float, *, block: int) -> None:
        runs = [
            (applies, sum(spec.count for spec in specs))
            for applies, specs in groupby(layout.parameters, lambda spec: spec.decay)
        ]
        # Run i, all of one decay, begins at _begins[i].
        self._begins = [0, *accumulate(count for _, count in runs)]
        self._applies = [applies for applies, _ in runs]
        self._value = np.float32(weight_decay)
        self._nowhere = weight_decay == 0.0 or not any(self._applies)
        # Nearly all blocks lie within one run; these two vectors serve them all.
        self._everywhere = np.full(0 if self._nowhere else block, self._value)
        self._zeros = np.zeros_like(self._everywhere)
        for vector in (self._everywhere, self._zeros):
            vector.flags.writeable = False

    def block(self, start: int, stop: int) -> Vector | None:
        """Returns the decay of parameters `start` to `stop`; None if it is 0 in all.

        None means nowhere in the model: adding a decay of zero can turn -0 into 0, so
        whether it is added must not depend on how the model is cut into blocks.
        """
        if self._nowhere:
            return None
        first = bisect_right(self._begins, start) - 1
        last = bisect_right(self._begins, max(start, stop - 1)) - 1
        if first == last:
            whole = self._everywhere if self._applies[first] else self._zeros
            return whole[: stop - start]
        decay = np.zeros(stop - start, np.float32)
        for run in range(first, last + 1):
            if self._applies[run]:
                begin = max(self._begins[run], start) - start
                decay[begin : self._begins[run + 1] - start] = self._value
        return decay
