from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.mirrors import (
    PART_SPECS,
    SMALL_BLOCK,
    STATE_KEY,
    SUBJECT,
    MemoryRegion,
    parts_begun,
    parts_found,
    parts_memory,
    place_at,
)

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.head_page import read_head, write_head
from cloister.storage.mirror.parts_mirror import PartsMirror


class ChangeOfMind(Exception):  # noqa: N818 - named for what happened
    pass


def change_mind() -> None:
    raise ChangeOfMind


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


def write(mirror: PartsMirror, start: int, values: NDArray[np.uint16]) -> None:
    with mirror.transaction() as transaction:
        transaction.write("table", start, values)


def filled() -> bytearray:
    region = parts_memory()
    mirror = parts_begun(region)
    write(mirror, 0, np.arange(1, 101, dtype="<u2"))
    return region.content


WRITES = st.tuples(st.integers(0, 99), st.integers(0, 100), st.integers(1, 2**16 - 1))
ACTS = st.sampled_from(["keep", "keep", "give up", "open again"])


@given(st.lists(st.tuples(ACTS, st.lists(WRITES, max_size=4)), max_size=8))
def test_transactions_do_what_they_do_to_an_array(
    story: list[tuple[str, list[tuple[int, int, int]]]],
) -> None:
    region = parts_memory()
    mirror = parts_begun(region)
    table = np.zeros(100, "<u2")
    for act, writes in story:
        if act == "open again":
            mirror = parts_found(region)
        after = table.copy()
        try:
            with mirror.transaction() as transaction:
                for start, count, value in writes:
                    values = np.full(min(count, 100 - start), value, "<u2")
                    transaction.write("table", start, values)
                    after[start : start + len(values)] = values
                    assert mirror.read("table").tobytes() == after.tobytes()
                if act == "give up":
                    change_mind()
        except ChangeOfMind:
            pass
        else:
            table = after
        assert mirror.read("table").tobytes() == table.tobytes()
    assert parts_found(region).read("table").tobytes() == table.tobytes()


def test_only_what_was_touched_is_written() -> None:
    # 64 KiB in blocks of 1 KiB; one element changes.
    specs = (replace(PART_SPECS[1], shape=(32_768,)),)
    region = MemoryRegion(bytearray(256 * 1024))
    mirror = PartsMirror.begin(region, place_at(), specs, block_bytes=1024)
    before = region.written
    write(mirror, 700, np.array([5], "<u2"))
    # Main and back: a block and the manifest.
    assert region.written - before < 2 * (1024 + 3 * 4096)


def test_arrays_are_read_and_not_written_and_follow() -> None:
    mirror = parts_begun(parts_memory())
    table = mirror.read("table")
    assert table.shape == (10, 10)
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1
    write(mirror, 11, np.array([7], "<u2"))
    assert table[1, 1] == 7


def test_calls_that_do_not_fit_are_bugs_of_the_caller() -> None:
    mirror = parts_begun(parts_memory())
    one = np.array([1], "<u2")
    with pytest.raises(RuntimeError, match="no array"):
        mirror.read("tables")
    with mirror.transaction() as transaction:
        with pytest.raises(RuntimeError, match="no array"):
            transaction.write("tables", 0, one)
        with pytest.raises(RuntimeError, match="no values of"):
            transaction.write("table", 0, one.astype("<u4"))
        for start in (-1, 100):
            with pytest.raises(RuntimeError, match="no such elements"):
                transaction.write("table", start, one)
        with pytest.raises(RuntimeError, match="open"), mirror.transaction():
            pass
    with pytest.raises(RuntimeError, match="over"):
        transaction.write("table", 0, one)


def test_a_mirror_of_parts_is_found_in_its_file(tmp_path: Path) -> None:
    place = place_at(tmp_path / "state.cohort")
    assert code_of(lambda: PartsMirror.open(place, PART_SPECS)) == "mirror-missing"
    mirror = PartsMirror.create(place, PART_SPECS)
    assert mirror.size_bytes == place.path.stat().st_size
    assert code_of(lambda: PartsMirror.create(place, PART_SPECS)) == "mirror-exists"
    mirror.close()
    mirror = PartsMirror.open(place, PART_SPECS)
    assert not mirror.read("table").any()
    write(mirror, 5, np.array([8, 9], "<u2"))
    assert code_of(lambda: PartsMirror.open(place, PART_SPECS)) == "mirror-in-use"
    mirror.close()
    mirror = PartsMirror.open(place, PART_SPECS)
    assert mirror.read("table")[0, 5:7].tolist() == [8, 9]
    mirror.close()


# Damage and lies.


FILLED = filled()


@given(st.data())
def test_any_flipped_bit_is_found_or_changes_nothing(data: st.DataObject) -> None:
    content = bytearray(FILLED)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        table = parts_found(MemoryRegion(content)).read("table")
    except StorageError as error:
        codes = {"mirror-damaged", "mirror-foreign", "mirror-version"}
        assert error.code in codes  # noqa: PT017
    else:
        assert table.ravel().tolist() == list(range(1, 101))


@given(st.data())
def test_any_flipped_bit_of_a_block_or_the_manifest_is_found(
    data: st.DataObject,
) -> None:
    content = bytearray(FILLED)
    main = 2 * 4096
    table = st.integers((main + 64) * 8, (main + 264) * 8 - 1)
    manifest = st.integers((main + 4096) * 8, (main + 2 * 4096) * 8 - 1)
    bit = data.draw(table | manifest)
    content[bit // 8] ^= 1 << bit % 8
    assert code_of(lambda: parts_found(MemoryRegion(content))) == "mirror-damaged"


def test_a_host_that_writes_another_first_page_is_found_out() -> None:
    region = MemoryRegion(bytearray(FILLED))
    head = read_head(region, kind=b"twin")
    write_head(region, replace(head, sizes=(head.sizes[0] - 4096, 0)))
    assert code_of(lambda: parts_found(region)) == "mirror-damaged"


def test_blocks_of_two_transactions_make_no_third() -> None:
    region = parts_memory()
    mirror = parts_begun(region)
    write(mirror, 0, np.full(100, 1, "<u2"))
    earlier = bytes(region.content)
    write(mirror, 0, np.full(100, 2, "<u2"))
    at = slice(2 * 4096 + 64, 2 * 4096 + 128)
    region.content[at] = earlier[at]
    assert code_of(lambda: parts_found(region)) == "mirror-damaged"


@pytest.mark.parametrize(
    ("subject", "key", "code"),
    [
        (SUBJECT, Secret(bytes(32)), "mirror-key"),
        (replace(SUBJECT, party="bob"), STATE_KEY, "mirror-foreign"),
        (replace(SUBJECT, run_id="tea/run-8"), Secret(bytes(32)), "mirror-foreign"),
    ],
)
def test_another_nodes_mirror_and_another_key_are_refused_by_name(
    subject: object, key: Secret, code: str
) -> None:
    place = replace(place_at(), subject=subject, key=key)  # type: ignore[arg-type]
    assert code_of(lambda: parts_found(MemoryRegion(bytearray(FILLED)), place)) == code


@pytest.mark.parametrize("block_bytes", [SMALL_BLOCK, 128])
def test_other_arrays_and_blocks_are_refused_by_name(block_bytes: int) -> None:
    shape = (100,) if block_bytes == SMALL_BLOCK else (10, 10)
    specs = (PART_SPECS[0], replace(PART_SPECS[1], shape=shape))
    region = MemoryRegion(bytearray(FILLED))
    find = lambda: PartsMirror.find(  # noqa: E731
        region, place_at(), specs, block_bytes=block_bytes
    )
    assert code_of(find) == "mirror-foreign"


@given(st.lists(st.sampled_from(["write", "open", "put back", "give up"]), max_size=8))
def test_no_nonce_repeats_also_when_older_files_are_put_back(acts: list[str]) -> None:
    # Zeros are sealed, so what lies there is the key stream itself: equal pieces would
    # be one key with one nonce.
    region = parts_memory()
    mirror = parts_begun(region)
    first = bytes(region.content)
    seen: set[bytes] = set()
    count = 0
    zeros = np.zeros(100, "<u2")
    for act in acts:
        if act == "put back":
            region.content[:] = first
        if act in {"put back", "open"}:
            mirror = parts_found(region)
        if act == "give up":
            with contextlib.suppress(ChangeOfMind), mirror.transaction() as transaction:
                transaction.write("table", 0, zeros)
                change_mind()
        write(mirror, 0, zeros)
        stream = bytes(region.content[2 * 4096 + 64 : 2 * 4096 + 256])
        seen |= {stream[at : at + 16] for at in range(0, 192, 16)}
        count += 12
    assert len(seen) == count
