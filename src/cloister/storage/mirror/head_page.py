"""The first page of a mirror: what it is, how it is divided, for good.

    0   16  magic, ``cloister/mirror`` and a newline
    16   4  version of the format
    20   4  kind: ``ring`` (slots) or ``twin`` (main and back)
    24   4  CRC-32 of the page, with these four bytes zero
    28   4  length of the header
    32  16  two sizes; ring: slots, bytes of each; twin: capacity, 0
    48  16  zero
    64   …  the header of whoever formatted it; zeros to the end of the page

Integers are little endian. It is written last, so a page that reads well stands before
a mirror that was made to its end. The CRC finds accidents; what an attacker changes is
found by what is sealed behind it.
"""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass
from typing import Final

from cloister.storage.mirror.refusals import damaged, foreign, other_version
from cloister.storage.mirror.region import PAGE, Region

MAGIC: Final = b"cloister/mirror\n"
VERSION: Final = 1
MAX_HEADER_BYTES: Final = 3072

_FORM: Final = struct.Struct("<16sI4sIIQQ16x")
_CRC_AT: Final = 24
_EXPECTED: Final = "a file that a node keeps its state in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the first page says.

    Attributes:
        kind: What lies behind it, 4 bytes.
        sizes: How that is divided; the meaning is the kind's.
        header: Of whoever formatted it, up to `MAX_HEADER_BYTES`.
    """

    kind: bytes
    sizes: tuple[int, int]
    header: bytes

    def __post_init__(self) -> None:
        if len(self.header) > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {len(self.header)} bytes")


def write_head(region: Region, head: Head) -> None:
    """Writes the first page; durable when this returns.

    All that it stands before must be durable already.

    Raises:
        StorageError: If the medium fails.
    """
    region.write(0, _page(head))
    region.flush(0, PAGE)
    region.fence()


def read_head(region: Region, *, kind: bytes) -> Head:
    """Returns what the first page says.

    Raises:
        StorageError: If it begins something else (``mirror-foreign``), something of
            another version (``mirror-version``), or was damaged (``mirror-damaged``).
    """
    page = bytearray(PAGE)
    region.read_into(0, memoryview(page))
    magic, version, found, _, length, *sizes = _FORM.unpack_from(page)
    if not any(page[: len(MAGIC)]):
        raise damaged(region.path, "it begins with zeros")
    if magic != MAGIC:
        raise foreign(region.path, expected=_EXPECTED, got="another beginning")
    if not version:
        raise damaged(region.path, "version 0, which there never was")
    # Before the CRC, which another version may have elsewhere.
    if version != VERSION:
        raise other_version(region.path, f"version {version}")
    if length > MAX_HEADER_BYTES:
        raise damaged(region.path, f"a header of {length} bytes")
    header = bytes(page[_FORM.size : _FORM.size + length])
    head = Head(kind=found, sizes=(sizes[0], sizes[1]), header=header)
    if page != _page(head):
        raise damaged(region.path, "its first page does not match its check sum")
    if found != kind:
        got = found.decode("ascii", "replace")
        raise foreign(region.path, expected=_EXPECTED, got=got)
    return head


def _page(head: Head) -> bytes:
    fixed = _FORM.pack(MAGIC, VERSION, head.kind, 0, len(head.header), *head.sizes)
    page = bytearray((fixed + head.header).ljust(PAGE, b"\0"))
    struct.pack_into("<I", page, _CRC_AT, binascii.crc32(page))
    return bytes(page)
