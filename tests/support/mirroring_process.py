"""Saves one state after the other until it is killed, and says which are durable.

Called with a path and what to keep states in: ``ring`` or ``twin``. Each state is one
value in all of its bytes, which is told on a line once it is durable.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.slots import SlotRing
from cloister.storage.mirror.twin import TwinRegion

# Many pages: a kill mostly comes in the middle of one.
STATE_BYTES = 2**20
VALUES = 251


def main() -> None:
    path, kind = Path(sys.argv[1]), sys.argv[2]
    region = open_region(path, size=1, new=False, medium="file")
    states = itertools.count(1)
    if kind == "ring":
        ring = SlotRing.open(region)
        for number in states:
            ring.write(0, bytes([number % VALUES]) * STATE_BYTES)
            ring.flip()
            print(number, flush=True)  # noqa: T201 - to the test
    else:
        twin = TwinRegion.open(region)
        for number in states:
            with twin.transaction() as transaction:
                for start in range(0, STATE_BYTES, 2**16):
                    transaction.write(start, bytes([number % VALUES]) * 2**16)
            print(number, flush=True)  # noqa: T201 - to the test


if __name__ == "__main__":
    main()
