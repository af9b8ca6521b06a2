from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mirrors import (
    SLOTS,
    SPECS,
    STATE_KEY,
    SUBJECT,
    MemoryRegion,
    begun,
    empty_state,
    found,
    memory,
    place_at,
    restored,
    same,
    save,
    small_work,
    some_state,
    specs_of,
)

from cloister.errors import ConfigError, StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.head_page import read_head, write_head
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import ArraySpec


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


def image(saves: int) -> bytearray:
    """What lies on a medium after some saves."""
    region = memory()
    mirror = begun(region)
    for completed in range(1, saves + 1):
        save(mirror, completed)
    return region.content


# Saving and finding.


@given(saves=st.integers(1, 8), again=st.integers(0, 3))
def test_the_newest_state_is_found_bit_for_bit_however_often_it_is_opened(
    saves: int, again: int
) -> None:
    region = memory()
    mirror = begun(region)
    assert mirror.newest is None
    rounds = list(range(1, saves + 1))
    digest = b""
    for completed in rounds:
        digest = save(mirror, completed)
    for _ in range(again):
        mirror = found(region)
        rounds.append(rounds[-1] + 1)
        digest = save(mirror, rounds[-1])
    mirror = found(region)
    completed, state = restored(mirror)
    assert completed == rounds[-1]
    assert same(state, some_state(completed))
    assert mirror.newest is not None
    assert mirror.newest.digest == digest
    assert mirror.newest.counters == {"marks": completed * 3}
    assert [kept.round for kept in mirror.kept] == rounds[::-1][: SLOTS - 1]


@given(saves=st.integers(1, 6))
def test_every_state_that_is_kept_can_be_restored(saves: int) -> None:
    mirror = found(MemoryRegion(image(saves)))
    for kept in mirror.kept:
        into = empty_state()
        mirror.restore(kept, into)
        assert same(into, some_state(kept.round))


def test_what_is_sealed_counts_only_once_it_is_committed() -> None:
    region = memory()
    mirror = begun(region)
    first = save(mirror, 1)
    mirror.seal(2, some_state(2))
    assert mirror.newest is not None
    assert mirror.newest.digest == first
    assert same(restored(mirror)[1], some_state(1))
    assert restored(found(MemoryRegion(bytearray(region.content))))[0] == 1
    # A second one takes its place.
    mirror.seal(3, some_state(3))
    mirror.commit()
    assert [kept.round for kept in mirror.kept] == [3, 1]
    assert same(restored(mirror)[1], some_state(3))


def test_the_digest_that_sealing_told_is_the_one_that_is_found() -> None:
    region = memory()
    mirror = begun(region)
    digests = [save(mirror, 5), save(mirror, 5)]
    assert len(set(digests)) == 2, "two saves of one state are two states"
    assert [kept.digest for kept in found(region).kept] == digests[::-1]


def test_calls_that_do_not_fit_are_bugs_of_the_caller() -> None:
    region = memory()
    mirror = begun(region)
    state = some_state(1)
    with pytest.raises(RuntimeError, match="sealed"):
        mirror.commit()
    older = mirror.seal(1, state)
    with pytest.raises(RuntimeError, match="does not keep"):
        mirror.restore(older, empty_state())
    mirror.commit()
    with pytest.raises(RuntimeError, match="sealed"):
        mirror.commit()
    with pytest.raises(RuntimeError, match="round"):
        mirror.seal(-1, state)
    with pytest.raises(RuntimeError, match="sealed"):
        mirror.commit()
    constant = empty_state()
    constant["mask"].flags.writeable = False
    with pytest.raises(RuntimeError, match="constant"):
        mirror.restore(older, constant)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("weights", np.zeros((7, 5), "<f4")),
        ("weights", np.zeros((5, 7), "<f8")),
        ("weights", np.zeros((7, 5), "<f4").T),
        ("other", np.zeros(1, "<f4")),
    ],
)
def test_arrays_that_are_not_the_mirrors_are_bugs_of_the_caller(
    name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    mirror = begun(memory())
    with pytest.raises(RuntimeError):
        mirror.seal(1, some_state(1) | {name: array})


def test_threads_seal_and_restore_the_same(tmp_path: Path) -> None:
    state = {f"t{n}": np.arange(n * 700, dtype="<u4") for n in range(9)}
    place = place_at(tmp_path / "state")
    with ThreadPoolExecutor(3) as threads:
        mirror = StateMirror.create(place, specs_of(state), threads=threads, count=4)
        for completed in range(3):
            mirror.seal(completed, state)
            mirror.commit()
        mirror.close()
    alone = StateMirror.open(place, specs_of(state))
    into = empty_state(specs_of(state))
    assert alone.newest is not None
    alone.restore(alone.newest, into)
    assert same(into, state)
    alone.close()


# The file.


def test_a_mirror_has_its_name_from_its_first_state_on(tmp_path: Path) -> None:
    place = place_at(tmp_path / "state")
    assert code_of(lambda: StateMirror.open(place, SPECS)) == "mirror-missing"
    mirror = StateMirror.create(place, SPECS)
    mirror.seal(0, some_state(0))
    assert not place.path.exists()
    mirror.close()
    assert list(tmp_path.iterdir()) == [], "nothing is left of one without a state"
    mirror = StateMirror.create(place, SPECS)
    save(mirror, 0)
    assert mirror.size_bytes == place.path.stat().st_size
    assert mirror.place is place
    mirror.close()
    assert code_of(lambda: StateMirror.create(place, SPECS)) == "mirror-exists"
    mirror = StateMirror.open(place, SPECS)
    assert restored(mirror)[0] == 0
    assert code_of(lambda: StateMirror.open(place, SPECS)) == "mirror-in-use"
    mirror.close()


def test_a_mirror_that_was_refused_is_given_back(tmp_path: Path) -> None:
    place = place_at(tmp_path / "state")
    mirror = StateMirror.create(place, SPECS)
    save(mirror, 4)
    mirror.close()
    wrong = replace(place, key=Secret(bytes(32)))
    for _ in range(2):
        assert code_of(lambda: StateMirror.open(wrong, SPECS)) == "mirror-key"
    mirror = StateMirror.open(place, SPECS)
    assert restored(mirror)[0] == 4
    mirror.close()


@given(size=st.integers(0, 200_000))
def test_any_truncation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    content = bytes(image(2))
    size = min(size, len(content) - 1)
    path = tmp_path_factory.mktemp("cut") / "state"
    path.write_bytes(content[:size])
    place = place_at(path)
    with pytest.raises(StorageError) as caught:
        StateMirror.open(place, SPECS, slots=SLOTS)
    assert caught.value.code in {"mirror-damaged", "mirror-foreign"}


# Damage and lies.


SAVED = image(4)


@given(st.data())
def test_any_flipped_bit_is_found_or_changes_nothing(data: st.DataObject) -> None:
    content = bytearray(SAVED)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    try:
        completed, state = restored(found(MemoryRegion(content)))
    except StorageError as error:
        assert error.code in {"mirror-damaged", "mirror-foreign", "mirror-version"}  # noqa: PT017
    else:
        assert (completed, same(state, some_state(4))) == (4, True)


def newest_slot(content: bytearray) -> tuple[int, int]:
    """Where the newest state lies, from and to."""
    zeros = bytearray(content)
    mirror = found(MemoryRegion(content))
    assert mirror.newest is not None
    each = (len(zeros) - 2 * 4096) // SLOTS
    start = 2 * 4096 + mirror.newest.slot * each
    return start, start + each


@given(st.data())
def test_any_flipped_bit_of_a_block_or_a_manifest_is_found(
    data: st.DataObject,
) -> None:
    content = bytearray(SAVED)
    start, end = newest_slot(content)
    weights = st.integers(start * 8, (start + 5 * 7 * 4) * 8 - 1)
    manifest = st.integers((start + 4096) * 8, end * 8 - 1)
    bit = data.draw(weights | manifest)
    content[bit // 8] ^= 1 << bit % 8
    assert code_of(lambda: restored(found(MemoryRegion(content)))) == "mirror-damaged"


def test_an_older_state_never_stands_in_for_a_newest_that_does_not_open() -> None:
    for age in range(SLOTS - 1):
        content = bytearray(SAVED)
        mirror = found(MemoryRegion(content))
        each = (len(content) - 2 * 4096) // SLOTS
        start = 2 * 4096 + mirror.kept[age].slot * each
        content[start : start + each] = bytes(each)
        assert code_of(lambda: found(MemoryRegion(content))) == "mirror-damaged"  # noqa: B023


def test_a_state_opens_in_no_other_slot_and_at_no_other_time() -> None:
    each = (len(SAVED) - 2 * 4096) // SLOTS
    slots = [slice(2 * 4096 + n * each, 2 * 4096 + (n + 1) * each) for n in range(3)]
    newest = found(MemoryRegion(SAVED)).kept[0].slot
    # Another slot's state in the newest one's place.
    moved = bytearray(SAVED)
    moved[slots[newest]] = moved[slots[(newest - 1) % SLOTS]]
    assert code_of(lambda: found(MemoryRegion(moved))) == "mirror-damaged"
    # The same slot's state of an earlier time, which is genuine.
    earlier = bytearray(SAVED)
    earlier[slots[newest]] = image(newest + 1)[slots[newest]]
    assert code_of(lambda: found(MemoryRegion(earlier))) == "mirror-damaged"


def test_a_host_that_writes_another_first_page_is_found_out() -> None:
    # With a right check sum, before a header that is genuine.
    region = MemoryRegion(bytearray(SAVED))
    head = read_head(region, kind=b"ring")
    slots, slot_bytes = head.sizes
    for sizes in ((slots - 1, slot_bytes), (slots, slot_bytes - 4096)):
        write_head(region, replace(head, sizes=sizes))
        assert code_of(lambda: found(region)) == "mirror-damaged"


def test_a_host_that_says_that_there_was_never_a_state_is_found_out() -> None:
    region = MemoryRegion(bytearray(SAVED))
    region.content[4096:8192] = memory_begun().content[4096:8192]
    assert code_of(lambda: found(region)) == "mirror-damaged"


def memory_begun() -> MemoryRegion:
    region = memory()
    begun(region)
    return region


def test_blocks_of_two_states_make_no_third() -> None:
    region = memory()
    mirror = begun(region)
    for completed in range(1, 5):
        save(mirror, completed)
    earlier = bytes(region.content)
    for completed in range(5, 8):
        save(mirror, completed)
    start, _ = newest_slot(region.content)
    region.content[start : start + 64] = earlier[start : start + 64]
    assert code_of(lambda: restored(found(region))) == "mirror-damaged"


@pytest.mark.parametrize(
    ("subject", "key", "code"),
    [
        (SUBJECT, Secret(bytes(32)), "mirror-key"),
        (replace(SUBJECT, run_id="tea/run-8"), STATE_KEY, "mirror-foreign"),
        (replace(SUBJECT, plan_hash=b"q" * 32), STATE_KEY, "mirror-foreign"),
        (replace(SUBJECT, role="worker"), STATE_KEY, "mirror-foreign"),
        (replace(SUBJECT, party="bob"), Secret(bytes(32)), "mirror-foreign"),
    ],
)
def test_another_nodes_mirror_and_another_key_are_refused_by_name(
    subject: object, key: Secret, code: str
) -> None:
    place = replace(place_at(), subject=subject, key=key)  # type: ignore[arg-type]
    assert code_of(lambda: found(MemoryRegion(bytearray(SAVED)), place)) == code


@pytest.mark.parametrize("change", ["name", "shape", "dtype", "order", "slots"])
def test_a_mirror_of_other_arrays_is_refused_by_name(change: str) -> None:
    specs = list(SPECS)
    changed: dict[str, ArraySpec] = {
        "name": replace(specs[0], name="weight"),
        "shape": replace(specs[0], shape=(7, 5)),
        "dtype": replace(specs[0], dtype="<i4"),
    }
    specs[0] = changed.get(change, specs[0])
    if change == "order":
        specs.reverse()
    slots = 2 if change == "slots" else SLOTS

    def find() -> StateMirror:
        region = MemoryRegion(bytearray(SAVED))
        return StateMirror.find(
            region, place_at(), specs, slots=slots, work=small_work()
        )

    assert code_of(find) == "mirror-foreign"


def test_a_mirror_of_other_blocks_is_refused_by_name() -> None:
    work = BlockWork(128, threads=None, count=1)
    region = MemoryRegion(bytearray(SAVED))
    assert (
        code_of(
            lambda: StateMirror.find(region, place_at(), SPECS, slots=SLOTS, work=work)
        )
        == "mirror-foreign"
    )


def test_arrays_that_cannot_be_mirrored_are_refused_before_a_file_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError) as caught:
        StateMirror.create(
            place_at(tmp_path / "state"), [ArraySpec(name="a", shape=(1,), dtype="|O")]
        )
    assert caught.value.code == "mirror-arrays"
    assert list(tmp_path.iterdir()) == []


# What a host sees.


def pieces(content: bytes) -> list[bytes]:
    """The newest slot's blocks, cut into what one call of the cipher makes."""
    start, _ = newest_slot(bytearray(content))
    return [bytes(content[at : at + 16]) for at in range(start, start + 128, 16)]


@given(st.lists(st.sampled_from(["save", "open", "put back"]), max_size=8))
def test_no_nonce_repeats_also_when_older_files_are_put_back(acts: list[str]) -> None:
    # Zeros are sealed, so what lies there is the key stream itself: equal pieces would
    # be one key with one nonce.
    zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in SPECS}
    region = memory()
    mirror = begun(region)
    mirror.seal(1, zeros)
    mirror.commit()
    first = bytes(region.content)
    seen = pieces(first)
    for act in acts:
        if act == "put back":
            region.content[:] = first
        if act != "save":
            mirror = found(region)
        mirror.seal(1, zeros)
        mirror.commit()
        seen += pieces(bytes(region.content))
    assert len(set(seen)) == len(seen)


def test_a_save_that_failed_uses_its_nonces_up() -> None:
    region = memory()
    mirror = begun(region)
    zeros = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in SPECS}
    seen: list[bytes] = []
    at = 2 * 4096
    for _ in range(3):
        mirror.seal(1, zeros)  # never committed: the same slot each time
        seen += [bytes(region.content[at + n : at + n + 16]) for n in range(0, 128, 16)]
    assert len(set(seen)) == len(seen)


def test_neither_values_nor_rounds_nor_counters_lie_in_the_clear() -> None:
    state = some_state(1)
    canary = b"a canary that nobody else wrote, 60 bytes with its full stop."[:60]
    state["weights"] = np.frombuffer(canary + bytes(80), "<f4").reshape(5, 7).copy()
    region = memory()
    mirror = begun(region)
    mirror.seal(0x5EA1ED5EA1ED, state, {"counter-canary": 1})
    mirror.commit()
    content = bytes(region.content)
    assert canary[:16] not in content
    assert b"counter-canary" not in content
    assert (0x5EA1ED5EA1ED).to_bytes(6, "big") not in content
    assert (0x5EA1ED5EA1ED).to_bytes(6, "little") not in content
    assert STATE_KEY.reveal() not in content


def test_a_manifest_has_one_size_whatever_it_counts() -> None:
    written: set[int] = set()
    for completed, counters in (
        (1, {}),
        (2**63 - 1, {f"counter-{n:02}" + "x" * 38: 2**64 - 1 for n in range(64)}),
    ):
        region = memory()
        mirror = begun(region)
        before = region.written
        mirror.seal(completed, some_state(1), counters)
        written.add(region.written - before)
        mirror.commit()
        kept = found(region).kept[0]
        assert (kept.round, kept.counters) == (completed, counters)
    assert len(written) == 1


def test_a_mirror_shows_no_key() -> None:
    mirror = begun(memory())
    assert STATE_KEY.reveal().hex() not in repr(mirror) + repr(mirror.place)
