"""Keeps states in a file through libpmem, in a process of its own.

libpmem reads its environment once, when it is loaded. Called with a path and a number
of rounds; prints whether stores are flushed by the processor, and what was read back.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.pmem_region import PmemRegion, load_library
from cloister.storage.mirror.slots import SlotRing
from cloister.storage.mirror.twin import TwinRegion

SLOT_BYTES = 5000


def main() -> None:
    path, rounds = Path(sys.argv[1]), int(sys.argv[2])
    size = SlotRing.region_bytes(slots=2, slot_bytes=SLOT_BYTES)
    region = PmemRegion(MediumFile.create(path, size=size), load_library())
    ring = SlotRing.format(region, slots=2, slot_bytes=SLOT_BYTES, header=b"ring")
    for number in range(1, rounds + 1):
        ring.write(0, bytes([number]) * SLOT_BYTES)
        ring.flip()
    region.publish()
    region.close()
    print("persistent" if region.persistent else "synced")  # noqa: T201 - to the test
    again = open_region(path, size=1, new=False, medium="persistent-memory")
    ring = SlotRing.open(again)
    view = bytearray(SLOT_BYTES)
    ring.read_into(ring.following ^ 1, 0, memoryview(view))
    print(ring.sequence, ring.header.decode(), set(view) == {rounds})  # noqa: T201 - to the test
    again.close()
    path.unlink()
    size = TwinRegion.region_bytes(capacity=100)
    region = PmemRegion(MediumFile.create(path, size=size), load_library())
    twin = TwinRegion.format(region, capacity=100, header=b"")
    for number in range(rounds):
        with twin.transaction() as transaction:
            transaction.write(number, b"x" * 3)
    view = bytearray(rounds + 2)
    twin.read_into(0, memoryview(view))
    print(view.decode())  # noqa: T201 - to the test
    region.close()


if __name__ == "__main__":
    main()
