"""The digest that stands for the server's state after a round, and when it is due.

A mark (`ratls/mark.py`) names it. Two servers that went on from one state, or one that
came back with another, have digests that differ. Written out in `docs/spec/wire.md`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import cbor2
import numpy as np
from numpy.typing import NDArray

# How much training may pass between two marks. Hashing every round would take longer
# than many a round.
MARK_SECONDS = 5.0

_LABEL = "cloister/state/1"


def state_digest(
    *,
    run_id: str,
    round_number: int,
    layout_digest: str,
    parameters: NDArray[np.float32],
    statistics: NDArray[np.float64],
    velocity: NDArray[np.float32],
) -> bytes:
    """Returns the SHA-256 of all that the next round depends on.

    The plan is not in it: an amended one takes over the very state, and its digest must
    be the one that everybody knows.

    No array is copied. The bytes are hashed as they lie in memory, which is little
    endian on every platform with SGX or TDX.

    Args:
        run_id: The run.
        round_number: Rounds completed; 0 before the first.
        layout_digest: Digest of the model's layout.
        parameters: All parameters: (parameter_count,).
        statistics: All statistics: (statistic_count,).
        velocity: The optimiser's state: (parameter_count,).
    """
    parts = (parameters, statistics, velocity)
    # With the sizes, so that no byte can pass from one array to the next.
    header = [
        _LABEL,
        run_id,
        round_number,
        layout_digest,
        [part.nbytes for part in parts],
    ]
    digest = hashlib.sha256(cbor2.dumps(header, canonical=True))
    for part in parts:
        digest.update(part.data)
    return digest.digest()


class MarkTimer:
    """Says whether a mark is due.

    Args:
        elapsed: A counter of seconds that only rises.
    """

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        self._elapsed = elapsed
        self._last: float | None = None

    def take(self, *, final: bool) -> bool:
        """Returns whether the model published now carries a mark.

        It does if it is the server's first, if it is the final one, or if the last
        mark is `MARK_SECONDS` old.
        """
        now = self._elapsed()
        if not final and self._last is not None and now < self._last + MARK_SECONDS:
            return False
        self._last = now
        return True
