from __future__ import annotations

import binascii
import struct

import pytest
from tests.support.crashing_region import CrashingRegion

from cloister.errors import StorageError
from cloister.storage.mirror.head_page import (
    MAX_HEADER_BYTES,
    VERSION,
    Head,
    read_head,
    write_head,
)
from cloister.storage.mirror.region import PAGE

HEAD = Head(kind=b"ring", sizes=(3, 2**40), header=b"any bytes")


def written(head: Head) -> bytes:
    region = CrashingRegion(bytes(PAGE))
    write_head(region, head)
    return region.after_cut(0)


PAGE_OF_HEAD = written(HEAD)


def refused(page: bytes) -> str:
    with pytest.raises(StorageError) as caught:
        read_head(CrashingRegion(page), kind=b"ring")
    assert caught.value.remedy
    return caught.value.code


@pytest.mark.parametrize(
    "header", [b"", b"a", bytes(MAX_HEADER_BYTES), b"\xff" * MAX_HEADER_BYTES]
)
def test_what_was_written_is_read(header: bytes) -> None:
    head = Head(kind=b"twin", sizes=(1, 2), header=header)
    assert read_head(CrashingRegion(written(head)), kind=b"twin") == head


def test_the_form_is_the_documented_one() -> None:
    fixed = b"cloister/mirror\n" + struct.pack("<I4sIIQQ", 1, b"ring", 0, 9, 3, 2**40)
    page = bytearray((fixed + bytes(16) + b"any bytes").ljust(PAGE, b"\0"))
    page[24:28] = binascii.crc32(page).to_bytes(4, "little")
    assert page == PAGE_OF_HEAD


def test_any_flipped_bit_is_found() -> None:
    for bit in [*range(8 * 80), *range(8 * 80, 8 * PAGE, 1009), 8 * PAGE - 1]:
        page = bytearray(PAGE_OF_HEAD)
        page[bit // 8] ^= 1 << bit % 8
        expected = {"mirror-damaged"}
        if bit < 16 * 8:
            expected = {"mirror-foreign"}
        elif bit < 20 * 8:
            expected = {"mirror-version", "mirror-damaged"}
        assert refused(bytes(page)) in expected


def test_another_version_is_told_whatever_follows() -> None:
    page = bytearray(PAGE_OF_HEAD)
    page[16:20] = (VERSION + 1).to_bytes(4, "little")
    page[20:] = b"\xa5" * (PAGE - 20)
    assert refused(bytes(page)) == "mirror-version"


def test_what_is_no_mirror_or_of_another_kind_is_told() -> None:
    assert refused(b"a letter to somebody".ljust(PAGE, b"!")) == "mirror-foreign"
    twin = Head(kind=b"twin", sizes=(1, 0), header=b"")
    assert refused(written(twin)) == "mirror-foreign"
    assert refused(bytes(PAGE)) == "mirror-damaged"


def test_a_header_that_is_too_long_is_a_bug() -> None:
    with pytest.raises(ValueError, match="header"):
        Head(kind=b"ring", sizes=(1, 1), header=bytes(MAX_HEADER_BYTES + 1))
