"""Sealed mirrors on a device that loses power anywhere: state k - 1 or k, exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
from tests.support.crashing_region import CrashingRegion, PowerCut, ProcessDeath
from tests.support.mirrors import (
    SLOTS,
    begun,
    empty_state,
    found,
    memory,
    parts_begun,
    parts_found,
    parts_memory,
    restored,
    same,
    save,
    some_state,
)

from cloister.errors import StorageError
from cloister.storage.mirror.region import Region

SEEDS = range(2, 5)
FIRST = 10  # the round that was saved before power became bad
LAST = 12  # enough to write over what was there


def saved(region: Region, *, progress: list[int]) -> None:
    """Opens and saves round after round; says after each that it was committed."""
    mirror = found(region)
    assert mirror.newest is not None
    progress.append(mirror.newest.round)
    for completed in range(mirror.newest.round + 1, LAST + 1):
        save(mirror, completed)
        progress.append(completed)


def first_image() -> bytes:
    region = memory()
    mirror = begun(region)
    for completed in range(FIRST - 3, FIRST + 1):
        save(mirror, completed)
    return bytes(region.content)


IMAGE = first_image()


def cuts(
    image: bytes, *, seeds: range = SEEDS, deaf: tuple[int, int] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Gives the last committed round and what lies there, after cuts everywhere."""
    whole = CrashingRegion(image)
    saved(whole, progress=[])
    for cut in range(1, whole.operations + 2):
        region = CrashingRegion(image, cut_at=cut, deaf=deaf)
        progress: list[int] = [FIRST]
        with contextlib.suppress(PowerCut):
            saved(region, progress=progress)
        for seed in seeds:
            yield progress[-1], region.after_cut(seed)


def test_a_cut_anywhere_leaves_the_last_state_or_the_one_before_bit_for_bit() -> None:
    cases = 0
    outcomes: set[int] = set()
    for committed, image in cuts(IMAGE):
        mirror = found(CrashingRegion(image))
        rounds = [kept.round for kept in mirror.kept]
        assert rounds[0] in {committed, committed + 1}
        assert rounds == list(range(rounds[0], rounds[0] - SLOTS + 1, -1))
        for kept in mirror.kept:
            into = empty_state()
            mirror.restore(kept, into)
            assert same(into, some_state(kept.round))
        outcomes.add(rounds[0] - committed)
        cases += 1
    assert cases > 80
    assert outcomes == {0, 1}


def test_training_goes_on_from_any_cut_to_the_same_end() -> None:
    for number, (_, image) in enumerate(cuts(IMAGE)):
        if number % 7:
            continue
        region = CrashingRegion(image)
        saved(region, progress=[])
        completed, state = restored(found(region))
        assert (completed, same(state, some_state(LAST))) == (LAST, True)


@pytest.mark.parametrize("fence", range(2))
def test_a_device_that_ignores_a_fence_is_found_out_and_never_believed(
    fence: int,
) -> None:
    found_out = 0
    for committed, image in cuts(IMAGE, seeds=range(2, 10), deaf=(fence, 2)):
        try:
            completed, state = restored(found(CrashingRegion(image)))
        except StorageError as error:
            found_out += error.code == "mirror-damaged"
        else:
            # An older state may come back; half a state never does.
            assert same(state, some_state(completed))
            found_out += completed < committed
    assert found_out


@pytest.mark.parametrize(
    ("deaf", "loses"), [(None, False), ((0, 2**20), True)], ids=["fence", "no fence"]
)
def test_a_state_that_is_found_after_a_kill_is_found_after_a_power_cut(
    deaf: tuple[int, int] | None,
    loses: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    """Between the two it is deposited and stated: then nobody accepts an older one."""
    whole = CrashingRegion(IMAGE)
    saved(whole, progress=[])
    lost = 0
    for kill in range(1, whole.operations + 2):
        region = CrashingRegion(IMAGE, kill_at=kill)
        progress = [FIRST]
        with contextlib.suppress(ProcessDeath):
            saved(region, progress=progress)
        region = region.next_process(deaf=deaf)
        believed = found(region).newest
        assert believed is not None
        assert believed.round in {progress[-1], progress[-1] + 1}
        for seed in (0, kill + 2):
            lost += found(CrashingRegion(region.after_cut(seed))).newest != believed
    assert bool(lost) == loses


def test_a_new_mirror_has_its_name_only_when_its_first_state_is_durable() -> None:
    blank = bytes(memory().content)
    whole = CrashingRegion(blank)
    save(begun(whole), 1)
    for cut in range(1, whole.operations + 2):
        region = CrashingRegion(blank, cut_at=cut)
        try:
            save(begun(region), 1)
        except PowerCut:
            assert not region.published
        else:
            assert region.published
            completed, state = restored(found(CrashingRegion(region.after_cut(0))))
            assert (completed, same(state, some_state(1))) == (1, True)


# Parts.


def changed(region: Region, *, progress: list[int]) -> None:
    """Makes transaction after transaction; each leaves its number in both arrays."""
    mirror = parts_found(region)
    progress.append(int(mirror.read("count")[0]))
    for number in range(progress[-1] + 1, 4):
        with mirror.transaction() as transaction:
            transaction.write("count", 0, np.array([number], "<i8"))
            transaction.write("table", number * 9, np.full(20, number, "<u2"))
        progress.append(number)


def table_after(number: int) -> bytes:
    table = np.zeros(100, "<u2")
    for each in range(1, number + 1):
        table[each * 9 : each * 9 + 20] = each
    return table.tobytes()


def test_a_transaction_of_parts_is_there_whole_or_not_at_all() -> None:
    region = parts_memory()
    parts_begun(region)
    image = bytes(region.content)
    whole = CrashingRegion(image)
    changed(whole, progress=[])
    outcomes: set[int] = set()
    for cut in range(1, whole.operations + 2):
        device = CrashingRegion(image, cut_at=cut)
        progress: list[int] = [0]
        with contextlib.suppress(PowerCut):
            changed(device, progress=progress)
        for seed in (0, 5):
            left = parts_found(CrashingRegion(device.after_cut(seed)))
            number = int(left.read("count")[0])
            outcomes.add(number - progress[-1])
            assert left.read("table").tobytes() == table_after(number)
    assert outcomes == {0, 1}


def test_parts_that_are_found_after_a_kill_are_found_after_a_power_cut() -> None:
    region = parts_memory()
    parts_begun(region)
    image = bytes(region.content)
    whole = CrashingRegion(image)
    changed(whole, progress=[])
    for kill in range(1, whole.operations + 2, 2):
        device = CrashingRegion(image, kill_at=kill)
        with contextlib.suppress(ProcessDeath):
            changed(device, progress=[])
        device = device.next_process()
        believed = int(parts_found(device).read("count")[0])
        left = parts_found(CrashingRegion(device.after_cut(0)))
        assert int(left.read("count")[0]) == believed
        assert left.read("table").tobytes() == table_after(believed)
