from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.support.crashing_region import CrashingRegion, PowerCut, ProcessDeath

from cloister.errors import StorageError
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.region import PAGE
from cloister.storage.mirror.slots import SlotRing

SLOTS, SLOT_BYTES = 3, 200
HEADER = b"whose it is"
FLIPS = 5
SEEDS = range(8)


def content(sequence: int) -> bytes:
    return np.random.default_rng(sequence).bytes(SLOT_BYTES)


def blank() -> bytes:
    return bytes(SlotRing.region_bytes(slots=SLOTS, slot_bytes=SLOT_BYTES))


def made(region: CrashingRegion) -> SlotRing:
    return SlotRing.format(region, slots=SLOTS, slot_bytes=SLOT_BYTES, header=HEADER)


def formatted() -> bytes:
    region = CrashingRegion(blank())
    made(region)
    return region.after_cut(0)


IMAGE = formatted()


def read(ring: SlotRing, slot: int) -> bytes:
    view = bytearray(ring.slot_bytes)
    ring.read_into(slot, 0, memoryview(view))
    return bytes(view)


def save(ring: SlotRing) -> None:
    """Saves what comes next, its parts in an order of their own."""
    data = content(ring.sequence + 1)
    for start, end in ((120, 200), (0, 7), (7, 120)):
        ring.write(start, data[start:end])
    ring.flip()


def run_until_cut(region: CrashingRegion, *, count: int = FLIPS) -> int:
    """Returns how many flips were durable, as far as the process knew."""
    flips = 0
    try:
        ring = SlotRing.open(region)
        while flips < count:
            save(ring)
            flips += 1
    except (PowerCut, ProcessDeath):
        pass
    return flips


def crashed(
    *, seeds: range, deaf: tuple[int, int] | None = None
) -> Iterator[tuple[int, bytes]]:
    whole = CrashingRegion(IMAGE)
    run_until_cut(whole)
    for cut in range(1, whole.operations + 2):
        region = CrashingRegion(IMAGE, cut_at=cut, deaf=deaf)
        flips = run_until_cut(region)
        for seed in seeds:
            yield flips, region.after_cut(seed)


def is_sound(flips: int, image: bytes) -> bool:
    ring = SlotRing.open(CrashingRegion(image))
    # All but the slot that follows, which may be written over in part.
    found = [read(ring, slot) for slot in ring.newest_first[: SLOTS - 1]]
    expected = [content(ring.sequence - age) for age in range(len(found))]
    return ring.sequence in {flips, flips + 1} and found == expected


def test_a_cut_at_any_operation_leaves_the_state_before_or_after() -> None:
    outcomes = [is_sound(*case) for case in crashed(seeds=SEEDS)]
    assert len(outcomes) > 300
    assert all(outcomes)


@pytest.mark.parametrize("fence", range(2))
def test_a_device_that_ignores_either_fence_is_found_out(fence: int) -> None:
    """The simulated device is hard enough to need both."""
    cases = crashed(seeds=range(20), deaf=(fence, 2))
    assert not all(is_sound(*case) for case in cases)


def killed_then_cut(*, deaf: tuple[int, int] | None = None) -> Iterator[bool]:
    """Says whether what was believed is there, after each cut that follows a death.

    A process dies anywhere; the next one opens the ring, believes what it finds, saves
    once more, and power is cut anywhere in that.
    """
    whole = CrashingRegion(IMAGE)
    run_until_cut(whole, count=SLOTS)
    for kill in range(1, whole.operations + 2):
        dead = CrashingRegion(IMAGE, kill_at=kill)
        flips = run_until_cut(dead, count=SLOTS)
        after = dead.next_process()
        save(SlotRing.open(after))
        for cut in range(1, after.operations + 2):
            region = dead.next_process(cut_at=cut, deaf=deaf)
            believed = flips
            try:
                ring = SlotRing.open(region)
                believed = ring.sequence
                assert believed in {flips, flips + 1}
                save(ring)
                believed += 1
            except PowerCut:
                pass
            for seed in (0, 1, cut + 2):
                yield is_sound(believed, region.after_cut(seed))


def test_what_the_next_process_believes_after_a_death_outlives_a_power_cut() -> None:
    outcomes = list(killed_then_cut())
    assert len(outcomes) > 1000
    assert all(outcomes)


def test_without_the_fence_at_the_opening_it_would_not() -> None:
    assert not all(killed_then_cut(deaf=(0, 2**20)))


def test_a_copy_that_was_put_back_and_not_synced_is_durable_once_it_was_opened() -> (
    None
):
    region = CrashingRegion(IMAGE)
    run_until_cut(region)
    copy = CrashingRegion(blank())
    copy.write(0, region.after_cut(0))
    region = copy.next_process()
    assert SlotRing.open(region).sequence == FLIPS
    assert is_sound(FLIPS, region.after_cut(0))


def test_after_any_cut_saves_go_on() -> None:
    for _, image in crashed(seeds=range(3)):
        region = CrashingRegion(image)
        ring = SlotRing.open(region)
        save(ring)
        assert is_sound(ring.sequence, region.after_cut(0))


def test_a_cut_while_it_is_made_leaves_nothing_or_an_empty_ring() -> None:
    opened, codes = 0, set()
    for cut in range(1, 7):
        for seed in range(20):
            region = CrashingRegion(blank(), cut_at=cut)
            with pytest.raises(PowerCut):
                made(region)
            try:
                ring = SlotRing.open(CrashingRegion(region.after_cut(seed)))
            except StorageError as error:
                codes.add(error.code)
            else:
                opened += 1
                assert (ring.sequence, ring.current) == (0, None)
    assert opened
    assert codes <= {"mirror-damaged", "mirror-foreign"}


def test_slots_come_round_and_the_newest_is_named_first() -> None:
    ring = made(CrashingRegion(blank()))
    assert (ring.slots, ring.slot_bytes, ring.header) == (SLOTS, SLOT_BYTES, HEADER)
    assert (ring.current, ring.following, ring.newest_first) == (None, 0, ())
    seen = []
    for _ in range(4):
        save(ring)
        seen.append((ring.sequence, ring.current, ring.following, ring.newest_first))
    assert seen == [
        (1, 0, 1, (0,)),
        (2, 1, 2, (1, 0)),
        (3, 2, 0, (2, 1, 0)),
        (4, 0, 1, (0, 2, 1)),
    ]


def test_what_is_written_is_not_current_before_the_flip() -> None:
    region = CrashingRegion(IMAGE)
    ring = SlotRing.open(region)
    save(ring)
    ring.write(0, content(2))
    assert read(ring, 0) == content(1)
    assert read(ring, 1) == content(2)
    again = SlotRing.open(CrashingRegion(region.after_cut(1)))
    assert (again.sequence, again.current) == (1, 0)
    ring.flip()
    assert is_sound(2, region.after_cut(0))


@pytest.mark.parametrize("cut", range(6, 13))
def test_a_ring_whose_flip_failed_is_not_gone_on_with(cut: int) -> None:
    ring = SlotRing.open(CrashingRegion(IMAGE, cut_at=cut))
    with pytest.raises(PowerCut):
        save(ring)
    for use in (ring.flip, lambda: ring.write(0, b"a")):
        with pytest.raises(RuntimeError, match="interrupted"):
            use()


def test_several_threads_may_write_and_read_at_once(tmp_path: Path) -> None:
    slot_bytes = 2**18
    region = open_region(
        tmp_path / "x.mirror",
        size=SlotRing.region_bytes(slots=2, slot_bytes=slot_bytes),
        new=True,
        medium="file",
    )
    ring = SlotRing.format(region, slots=2, slot_bytes=slot_bytes, header=b"")
    data = np.random.default_rng(4).bytes(slot_bytes)
    found = bytearray(slot_bytes)
    together = threading.Barrier(4)

    def write(thread: int) -> None:
        together.wait()
        for start in range(thread * 1000, slot_bytes, 4000):
            part = data[start : start + 1000]
            ring.write(start, part)
            view = memoryview(found)[start : start + len(part)]
            ring.read_into(0, start, view)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    ring.flip()
    assert found == data
    region.publish()
    region.close()
    region = open_region(tmp_path / "x.mirror", size=1, new=False, medium="file")
    ring = SlotRing.open(region)
    assert (ring.sequence, ring.current) == (1, 0)
    assert read(ring, 0) == data
    region.close()


def test_ranges_outside_of_a_slot_are_bugs() -> None:
    ring = made(CrashingRegion(blank()))
    for offset, data in ((-1, b"a"), (SLOT_BYTES, b"a"), (0, bytes(SLOT_BYTES + 1))):
        with pytest.raises(ValueError, match="bytes at"):
            ring.write(offset, data)
    for slot, offset, length in ((0, 199, 2), (SLOTS, 0, 1), (-1, 0, 1)):
        with pytest.raises(ValueError, match="bytes at"):
            ring.read_into(slot, offset, memoryview(bytearray(length)))
    for slots, size in ((1, SLOT_BYTES), (SLOTS, 0)):
        with pytest.raises(ValueError, match="slots of"):
            SlotRing.format(
                CrashingRegion(blank()), slots=slots, slot_bytes=size, header=b""
            )
    with pytest.raises(ValueError, match="bytes at"):
        SlotRing.format(
            CrashingRegion(blank()), slots=SLOTS + 1, slot_bytes=1, header=b""
        )


def test_any_flipped_bit_in_the_state_word_is_found() -> None:
    region = CrashingRegion(IMAGE)
    ring = SlotRing.open(region)
    for _ in range(3):
        save(ring)
    image = region.after_cut(0)
    for bit in range(64):
        flipped = bytearray(image)
        flipped[PAGE + bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)).code == "mirror-damaged"


def refused(image: bytes) -> StorageError:
    with pytest.raises(StorageError) as caught:
        SlotRing.open(CrashingRegion(image))
    return caught.value


def cut_short(image: bytearray) -> None:
    del image[-PAGE:]


def no_state_word(image: bytearray) -> None:
    image[PAGE : PAGE + 8] = bytes(8)


@pytest.mark.parametrize("damage", [cut_short, no_state_word])
def test_damage_is_told(damage: Callable[[bytearray], None]) -> None:
    image = bytearray(IMAGE)
    damage(image)
    assert refused(bytes(image)).code == "mirror-damaged"
