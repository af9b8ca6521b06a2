"""How large messages are, and what gRPC may hold for a connection of the server.

Few large messages are faster than many small ones. But for every connection gRPC keeps
a buffer of about what last came at once, and never makes it small again: a megabyte for
each of a thousand workers is a gigabyte (`docs/performance.md` has both figures). So it
depends on how many workers a plan names, which both sides know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_KIB: Final = 1024

# So many workers may have what is fastest; and so many, what is nearly so.
MOST_FEW: Final = 32
MOST_SOME: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSizes:
    """What is sent at once.

    Attributes:
        chunk_bytes: Size of every chunk but a model's last.
        window_bytes: What a worker may have on its way to the server.
        read_bytes: What the server reads at once from a new connection. It becomes
            what comes at once; from there on it does not grow if it began there.
    """

    chunk_bytes: int
    window_bytes: int
    read_bytes: int


# A window of 1 MiB is 20 MB a second over 50 ms. 8 KiB is gRPC's own beginning.
FEW: Final = TransferSizes(
    chunk_bytes=1024 * _KIB, window_bytes=1024 * _KIB, read_bytes=8 * _KIB
)
SOME: Final = TransferSizes(
    chunk_bytes=512 * _KIB, window_bytes=512 * _KIB, read_bytes=8 * _KIB
)
MANY: Final = TransferSizes(
    chunk_bytes=256 * _KIB, window_bytes=128 * _KIB, read_bytes=128 * _KIB
)


def transfer_sizes(workers: int) -> TransferSizes:
    """Returns the sizes for a run of so many workers."""
    if workers <= MOST_FEW:
        return FEW
    return SOME if workers <= MOST_SOME else MANY
