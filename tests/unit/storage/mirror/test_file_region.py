from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import StorageError
from cloister.storage.mirror import medium_file
from cloister.storage.mirror.file_region import FileRegion
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.region import PAGE, Region
from cloister.storage.mirror.subject import Survives

SIZE = 8 * PAGE


@pytest.fixture(params=["power-cut", "process-death"])
def survives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to store, whatever the tests' own directory lies on."""
    kind: Survives = request.param
    monkeypatch.setattr(medium_file, "survives_at", lambda _: kind)
    return kind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mirror"


@pytest.fixture
def region(path: Path, survives: str) -> Iterator[Region]:
    region = open_region(path, size=SIZE, new=True, medium="file")
    assert region.survives == survives
    yield region
    region.close()


def read(region: Region, offset: int, length: int) -> bytes:
    view = bytearray(length)
    region.read_into(offset, memoryview(view))
    return bytes(view)


def test_a_store_is_read_at_once_and_is_in_the_file_after_a_fence(
    region: Region, path: Path
) -> None:
    expected = bytearray(SIZE)
    stores = [(0, b"a"), (PAGE - 3, b"across"), (8, b"one word"), (9, b"odd word")]
    for offset, data in [*stores, (SIZE - 8, b"the last"), (77, b"")]:
        region.write(offset, data)
        expected[offset : offset + len(data)] = data
        assert read(region, 0, SIZE) == expected
    region.flush(0, SIZE)
    region.fence()
    region.publish()
    assert path.read_bytes() == expected
    region.close()
    again = open_region(path, size=1, new=False, medium="file")
    assert read(again, 0, SIZE) == expected
    again.close()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "|u1", "<c16", "?"])
def test_arrays_are_stored_and_filled_as_their_bytes(
    region: Region, dtype: str
) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    region.write(5, array.data)
    region.write(1000, array[1:].data)
    assert read(region, 5, array.nbytes) == array.tobytes()
    assert read(region, 1000, array.nbytes * 2 // 3) == array[1:].tobytes()
    filled = np.empty_like(array)
    region.read_into(5, filled.data)
    assert filled.tobytes() == array.tobytes()


def test_what_is_outside_of_it_is_a_bug(region: Region) -> None:
    for offset, length in ((-8, 8), (SIZE, 1), (SIZE - 4, 8), (0, SIZE + 1)):
        with pytest.raises(ValueError, match="bytes at"):
            region.write(offset, bytes(length))
        with pytest.raises(ValueError, match="bytes at"):
            region.read_into(offset, memoryview(bytearray(length)))
        with pytest.raises(ValueError, match="bytes at"):
            region.flush(offset, length)


def test_several_threads_may_store_at_once(region: Region) -> None:
    data = np.random.default_rng(1).bytes(SIZE)
    together = threading.Barrier(4)

    def store(thread: int) -> None:
        together.wait()
        for start in range(thread * 100, SIZE, 400):
            region.write(start, data[start : start + 100])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(store, range(4)))
    assert read(region, 0, SIZE) == data


def test_a_fence_with_nothing_flushed_asks_the_medium_for_nothing(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "fdatasync", asked.append)
    region.write(0, b"a")
    region.fence()
    assert asked == []
    region.flush(0, 1)
    region.fence()
    region.fence()
    assert len(asked) == 1


def test_a_fence_covers_what_another_process_stored(
    region: Region, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region.write(0, b"a")
    region.publish()
    region.close()
    again = open_region(path, size=SIZE, new=False, medium="file")
    asked: list[int] = []
    monkeypatch.setattr(os, "fdatasync", asked.append)
    again.flush(0, SIZE)
    again.fence()
    assert len(asked) == 1
    again.close()


def refused(region: Region) -> list[str]:
    """Returns the code of each use of a region that failed."""
    codes = []
    for use in (
        region.fence,
        region.publish,
        lambda: region.flush(0, 1),
        lambda: region.write(0, b"a"),
        lambda: read(region, 0, 1),
    ):
        with pytest.raises(StorageError) as caught:
            use()
        codes.append(caught.value.code)
    return codes


def test_after_a_failed_fence_the_region_is_out_of_use(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    region.write(0, b"a")
    region.flush(0, 1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError) as caught:
            region.fence()
    assert caught.value.code == "mirror-unwritable"
    assert refused(region) == ["mirror-unwritable"] * 5


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "mirror-full"), (errno.EIO, "mirror-unwritable")],
)
def test_after_a_failed_store_the_region_is_out_of_use(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(medium_file, "survives_at", lambda _: "power-cut")
    region = open_region(path, size=SIZE, new=True, medium="file")
    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", fail)
        with pytest.raises(StorageError) as caught:
            region.write(0, b"some bytes")
    assert caught.value.code == code
    assert refused(region) == [code] * 5
    region.close()


def test_a_store_that_the_kernel_takes_in_parts_is_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def slow(descriptor: int, data: memoryview, offset: int, /) -> int:
        return pwrite(descriptor, data[:5], offset)

    monkeypatch.setattr(medium_file, "survives_at", lambda _: "power-cut")
    region = open_region(path, size=SIZE, new=True, medium="file")
    monkeypatch.setattr(os, "pwrite", slow)
    region.write(3, b"no more than five at a time")
    assert read(region, 3, 27) == b"no more than five at a time"
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError) as caught:
        region.write(0, b"a")
    assert caught.value.code == "mirror-full"
    region.close()


def test_a_closed_region_is_out_of_order_and_another_may_have_the_file(
    region: Region, path: Path
) -> None:
    region.publish()
    with pytest.raises(StorageError) as caught:
        open_region(path, size=1, new=False, medium="file")
    assert caught.value.code == "mirror-in-use"
    region.close()
    region.close()
    for use in (region.fence, lambda: region.write(0, b"a"), region.publish):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    open_region(path, size=1, new=False, medium="file").close()


def test_a_file_that_cannot_be_mapped_is_told_and_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    file = MediumFile.create(path, size=SIZE)
    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(StorageError) as caught:
        FileRegion(file)
    assert caught.value.code == "mirror-unwritable"
    assert list(path.parent.iterdir()) == []
