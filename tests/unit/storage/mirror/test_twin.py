from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.crashing_region import CrashingRegion, PowerCut, ProcessDeath

from cloister.errors import StorageError
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.region import PAGE
from cloister.storage.mirror.twin import Transaction, TwinRegion

CAPACITY = 500
HEADER = b"whose it is"
SEEDS = range(8)
# What each transaction writes, by offset: touching, overlapping and odd ranges; twice
# to one place; a small one; and one that is larger than what is logged.
STORES: list[list[tuple[int, bytes]]] = [
    [(8, b"a" * 24), (32, b"b" * 9), (20, b"c" * 30)],
    [(0, b"d" * 3), (497, b"e" * 3), (0, b"f" * 3)],
    [(100, b"g" * 300), (99, b"h" * 2)],
    [(16, b"i" * 8)],
    [(30, b"j" * 40), (490, b"k" * 10)],
]


def after(stores: list[list[tuple[int, bytes]]]) -> bytes:
    content = bytearray(CAPACITY)
    for transaction in stores:
        for offset, data in transaction:
            content[offset : offset + len(data)] = data
    return bytes(content)


STATES = [after(STORES[:count]) for count in range(len(STORES) + 1)]


def blank() -> bytes:
    return bytes(TwinRegion.region_bytes(capacity=CAPACITY))


def formatted() -> bytes:
    region = CrashingRegion(blank())
    TwinRegion.format(region, capacity=CAPACITY, header=HEADER)
    return region.after_cut(0)


IMAGE = formatted()


def read(twin: TwinRegion) -> bytes:
    content = bytearray(twin.capacity)
    twin.read_into(0, memoryview(content))
    return bytes(content)


def store(twin: TwinRegion, stores: list[tuple[int, bytes]]) -> None:
    with twin.transaction() as transaction:
        for offset, data in stores:
            transaction.write(offset, data)


def run_until_cut(region: CrashingRegion) -> int:
    """Returns how many transactions were durable, as far as the process knew."""
    committed = 0
    try:
        twin = TwinRegion.open(region)
        for stores in STORES:
            store(twin, stores)
            committed += 1
    except (PowerCut, ProcessDeath):
        pass
    return committed


def operations(image: bytes) -> int:
    region = CrashingRegion(image)
    run_until_cut(region)
    return region.operations


CUTS = range(1, operations(IMAGE) + 2)


def crashed(
    *, seeds: range, deaf: tuple[int, int] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Gives what was committed and what lies on the device, after cuts everywhere."""
    for cut in CUTS:
        region = CrashingRegion(IMAGE, cut_at=cut, deaf=deaf)
        committed = run_until_cut(region)
        for seed in seeds:
            yield committed, region.after_cut(seed)


def is_sound(committed: int, image: bytes) -> bool:
    found = read(TwinRegion.open(CrashingRegion(image)))
    return found in STATES[committed : committed + 2]


def test_a_cut_at_any_operation_leaves_the_state_before_or_after() -> None:
    outcomes = [is_sound(*case) for case in crashed(seeds=SEEDS)]
    assert len(outcomes) > 300
    assert all(outcomes)


@pytest.mark.parametrize("fence", range(4))
def test_a_device_that_ignores_any_of_the_four_fences_is_found_out(fence: int) -> None:
    """The simulated device is hard enough to need each of them."""
    cases = crashed(seeds=range(20), deaf=(fence, 4))
    assert not all(is_sound(*case) for case in cases)


def test_recovery_may_be_cut_anywhere_and_begun_again() -> None:
    cuts = 0
    for committed, image in crashed(seeds=range(2, 5)):
        recovering = CrashingRegion(image)
        found = read(TwinRegion.open(recovering))
        for cut in range(1, recovering.operations + 1):
            again = CrashingRegion(image, cut_at=cut)
            with pytest.raises(PowerCut):
                TwinRegion.open(again)
            left = again.after_cut(seed=cut)
            # Not only one of the two: the one that was on its way already.
            assert read(TwinRegion.open(CrashingRegion(left))) == found
            assert is_sound(committed, left)
            cuts += 1
    assert cuts > 100


MORE = [(250, b"more of it"), (3, b"and this")]


def with_more(content: bytes) -> bytes:
    changed = bytearray(content)
    for offset, data in MORE:
        changed[offset : offset + len(data)] = data
    return bytes(changed)


def opens_and_goes_on(region: CrashingRegion, former: list[bytes]) -> list[bytes]:
    """Returns what may lie there from here on; `former` if it was cut while opening."""
    try:
        twin = TwinRegion.open(region)
        believed = read(twin)
        assert believed in former
        former = [believed, with_more(believed)]
        store(twin, MORE)
        former = former[1:]
    except PowerCut:
        pass
    return former


def is_one_of(expected: list[bytes], image: bytes) -> bool:
    try:
        return read(TwinRegion.open(CrashingRegion(image))) in expected
    except StorageError:
        return False


def deaths() -> Iterator[tuple[list[bytes], CrashingRegion]]:
    """Gives what may be found, and the device, after a death at any operation."""
    for kill in CUTS:
        dead = CrashingRegion(IMAGE, kill_at=kill)
        committed = run_until_cut(dead)
        yield STATES[committed : committed + 2], dead


def cut_after(
    dead: CrashingRegion, former: list[bytes], *, deaf: tuple[int, int] | None = None
) -> Iterator[bool]:
    """Says whether what the next process believed is there, after cuts everywhere."""
    whole = dead.next_process()
    opens_and_goes_on(whole, former)
    for cut in range(1, whole.operations + 2):
        region = dead.next_process(cut_at=cut, deaf=deaf)
        expected = opens_and_goes_on(region, former)
        for seed in (0, cut + 2):
            yield is_one_of(expected, region.after_cut(seed))


def test_what_the_next_process_believes_after_a_death_outlives_a_power_cut() -> None:
    outcomes = [
        outcome for former, dead in deaths() for outcome in cut_after(dead, former)
    ]
    assert len(outcomes) > 1500
    assert all(outcomes)


def test_without_the_fence_at_the_opening_it_would_not() -> None:
    assert not all(
        outcome
        for former, dead in deaths()
        for outcome in cut_after(dead, former, deaf=(0, 2**20))
    )


def test_a_copy_that_was_put_back_and_not_synced_is_durable_once_it_was_opened() -> (
    None
):
    for former, dead in list(deaths())[::5]:
        copy = CrashingRegion(blank())
        copy.write(0, dead.after_cut(1))
        region = copy.next_process()
        believed = read(TwinRegion.open(region))
        assert believed in former
        assert is_one_of([believed], region.after_cut(0))


def test_a_process_may_die_in_its_recovery_before_the_power_cut_too() -> None:
    recoveries = 0
    for former, dead in list(deaths())[::3]:
        whole = dead.next_process()
        TwinRegion.open(whole)
        for kill in range(1, whole.operations + 1):
            dying = dead.next_process(kill_at=kill)
            with pytest.raises(ProcessDeath):
                TwinRegion.open(dying)
            found = read(TwinRegion.open(dying.next_process()))
            assert found in former
            for cut in range(1, 9):
                region = dying.next_process(cut_at=cut)
                with contextlib.suppress(PowerCut):
                    TwinRegion.open(region)
                # Its first fence, the second operation, decides which it is.
                expected = former if max(kill, cut) <= 2 else [found]
                assert is_one_of(expected, region.after_cut(cut))
        recoveries += whole.operations > 2
    assert recoveries > 10


def test_after_a_recovery_transactions_go_on() -> None:
    for _, image in crashed(seeds=range(2, 3)):
        region = CrashingRegion(image)
        twin = TwinRegion.open(region)
        expected = bytearray(read(twin))
        expected[5:9] = b"more"
        store(twin, [(5, b"more")])
        for seed in range(3):
            again = TwinRegion.open(CrashingRegion(region.after_cut(seed)))
            assert read(again) == expected


def test_a_cut_while_it_is_made_leaves_nothing_or_zeros() -> None:
    opened, codes = 0, set()
    for cut in range(1, 7):
        for seed in range(20):
            region = CrashingRegion(blank(), cut_at=cut)
            with pytest.raises(PowerCut):
                TwinRegion.format(region, capacity=CAPACITY, header=HEADER)
            try:
                twin = TwinRegion.open(CrashingRegion(region.after_cut(seed)))
            except StorageError as error:
                codes.add(error.code)
            else:
                opened += 1
                assert read(twin) == bytes(CAPACITY)
    assert opened
    assert codes <= {"mirror-damaged", "mirror-foreign"}


class Change(Exception):  # noqa: N818 - of mind
    pass


def store_and_take_back(twin: TwinRegion, stores: list[tuple[int, bytes]]) -> bytes:
    """Returns what was read just before a transaction was given up."""
    seen = b""

    def give_up() -> None:
        nonlocal seen
        with twin.transaction() as transaction:
            for offset, data in stores:
                transaction.write(offset, data)
            seen = read(twin)
            raise Change

    with pytest.raises(Change):
        give_up()
    return seen


def test_a_block_that_raises_leaves_all_as_it_was() -> None:
    region = CrashingRegion(IMAGE)
    twin = TwinRegion.open(region)
    store(twin, STORES[0])
    for stores in STORES[1:]:
        assert store_and_take_back(twin, stores) != STATES[1]
        assert read(twin) == STATES[1]
    store(twin, STORES[1])
    assert read(TwinRegion.open(CrashingRegion(region.after_cut(0)))) == STATES[2]


def test_a_cut_while_a_transaction_is_rolled_back_leaves_the_state_before() -> None:
    def change_of_mind(region: CrashingRegion) -> None:
        with TwinRegion.open(region).transaction() as transaction:
            transaction.write(3, b"half of it")
            raise Change

    whole = CrashingRegion(IMAGE)
    with pytest.raises(Change):
        change_of_mind(whole)
    for cut in range(1, whole.operations + 1):
        region = CrashingRegion(IMAGE, cut_at=cut)
        with pytest.raises(PowerCut):
            change_of_mind(region)
        for seed in SEEDS:
            left = CrashingRegion(region.after_cut(seed))
            assert read(TwinRegion.open(left)) == STATES[0]


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.integers(0, CAPACITY - 60), st.binary(max_size=60)),
                max_size=6,
            ),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_any_transactions_do_what_stores_to_memory_do(
    transactions: list[tuple[list[tuple[int, bytes]], bool]],
) -> None:
    region = CrashingRegion(IMAGE)
    twin = TwinRegion.open(region)
    kept: list[list[tuple[int, bytes]]] = []
    for stores, keeps in transactions:
        if keeps:
            store(twin, stores)
            kept.append(stores)
        else:
            store_and_take_back(twin, stores)
        assert read(twin) == after(kept)
    assert read(TwinRegion.open(CrashingRegion(region.after_cut(0)))) == after(kept)


def test_only_what_changed_is_written() -> None:
    region = CrashingRegion(IMAGE)
    twin = TwinRegion.open(region)
    words = 3 * 8  # mutating, copying, idle
    store(twin, [(0, bytes(50)), (40, bytes(20))])
    assert region.stored_bytes == words + (50 + 20) + 60
    # Above a quarter, all of it.
    region.stored_bytes = 0
    store(twin, [(0, bytes(126))])
    assert region.stored_bytes == words + 126 + CAPACITY


def test_a_large_one_in_a_file_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path, capacity = tmp_path / "x.mirror", 3 * 2**20 + 5
    size = TwinRegion.region_bytes(capacity=capacity)
    region = open_region(path, size=size, new=True, medium="file")
    twin = TwinRegion.format(region, capacity=capacity, header=HEADER)
    content = np.random.default_rng(3).bytes(capacity)
    store(twin, [(0, content)])
    region.publish()
    region.close()
    region = open_region(path, size=1, new=False, medium="file")
    twin = TwinRegion.open(region)
    assert (twin.header, twin.capacity) == (HEADER, capacity)
    assert read(twin) == content
    assert store_and_take_back(twin, [(1, bytes(capacity - 1))]) != content
    assert read(twin) == content
    region.close()


def test_several_threads_may_write_in_one_transaction(tmp_path: Path) -> None:
    capacity = 2**18
    region = open_region(
        tmp_path / "x.mirror",
        size=TwinRegion.region_bytes(capacity=capacity),
        new=True,
        medium="file",
    )
    twin = TwinRegion.format(region, capacity=capacity, header=b"")
    content = np.random.default_rng(4).bytes(capacity)
    together = threading.Barrier(4)

    def write(transaction: Transaction, thread: int) -> None:
        together.wait()
        for start in range(thread * 1000, capacity, 4000):
            transaction.write(start, content[start : start + 1000])

    with ThreadPoolExecutor(4) as threads, twin.transaction() as transaction:
        for done in [threads.submit(write, transaction, each) for each in range(4)]:
            done.result()
    assert read(twin) == content
    region.close()


def test_calls_out_of_order_are_bugs() -> None:
    twin = TwinRegion.open(CrashingRegion(IMAGE))
    with twin.transaction() as transaction:
        with pytest.raises(RuntimeError, match="under way"):
            store(twin, [])
        for offset, data in ((-1, b"a"), (CAPACITY, b"a"), (CAPACITY - 1, b"ab")):
            with pytest.raises(ValueError, match="bytes at"):
                transaction.write(offset, data)
    with pytest.raises(RuntimeError, match="over"):
        transaction.write(0, b"a")
    with pytest.raises(ValueError, match="bytes at"):
        twin.read_into(CAPACITY, memoryview(bytearray(1)))
    with pytest.raises(ValueError, match="capacity"):
        TwinRegion.format(CrashingRegion(blank()), capacity=0, header=b"")
    with pytest.raises(ValueError, match="bytes at"):
        TwinRegion.format(CrashingRegion(blank()), capacity=PAGE + 1, header=b"")


def test_a_transaction_whose_end_failed_is_not_gone_on_from() -> None:
    twin = TwinRegion.open(CrashingRegion(IMAGE, cut_at=7))
    with pytest.raises(PowerCut):
        store(twin, STORES[0])
    with pytest.raises(RuntimeError, match="interrupted"):
        store(twin, STORES[0])


def cut_short(image: bytearray) -> None:
    del image[-PAGE:]


def unknown_state(image: bytearray) -> None:
    image[PAGE] ^= 1


def nothing_there(image: bytearray) -> None:
    image[:PAGE] = bytes(PAGE)


@pytest.mark.parametrize("damage", [cut_short, unknown_state, nothing_there])
def test_damage_is_told(damage: Callable[[bytearray], None]) -> None:
    image = bytearray(IMAGE)
    damage(image)
    with pytest.raises(StorageError) as caught:
        TwinRegion.open(CrashingRegion(bytes(image)))
    assert caught.value.code == "mirror-damaged"
