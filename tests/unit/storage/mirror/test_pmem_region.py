from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import PlatformError, StorageError
from cloister.storage.mirror import pmem_region
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.pmem_region import Library, PmemRegion, load_library
from cloister.storage.mirror.region import PAGE

ROOT = Path(__file__).parents[4]
SIZE = 4 * PAGE


def installed() -> bool:
    try:
        load_library()
    except PlatformError:
        return False
    return True


needs_libpmem = pytest.mark.skipif(
    not installed(), reason="needs libpmem (`make tools` as root)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mirror"


@pytest.fixture
def region(path: Path) -> Iterator[PmemRegion]:
    region = PmemRegion(MediumFile.create(path, size=SIZE), load_library())
    yield region
    region.close()


def read(region: PmemRegion, offset: int, length: int) -> bytes:
    view = bytearray(length)
    region.read_into(offset, memoryview(view))
    return bytes(view)


def test_without_libpmem_it_says_what_to_install() -> None:
    with pytest.raises(PlatformError) as caught:
        load_library("libnothing-of-this-name.so.1")
    assert caught.value.code == "libpmem-missing"
    assert "libpmem1" in caught.value.remedy


def test_without_libpmem_no_file_is_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Library:
        return load_library("libnothing-of-this-name.so.1")

    monkeypatch.setattr(pmem_region, "load_library", missing)
    with pytest.raises(PlatformError):
        open_region(path, size=SIZE, new=True, medium="persistent-memory")
    assert list(path.parent.iterdir()) == []


@needs_libpmem
@pytest.mark.parametrize("forced", ["0", "1"])
def test_states_are_kept_where_the_processor_flushes_and_where_it_does_not(
    path: Path, forced: str
) -> None:
    done = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-m", "tests.support.pmem_process", str(path), "3"],
        env=os.environ | {"PMEM_IS_PMEM_FORCE": forced},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    kind = "persistent" if forced == "1" else "synced"
    assert done.stdout.decode().splitlines() == [kind, "3 ring True", "xxxxx"]


@needs_libpmem
def test_a_store_is_read_at_once_and_is_in_the_file_after_a_fence(
    region: PmemRegion, path: Path
) -> None:
    expected = bytearray(SIZE)
    stores = [(0, b"a"), (PAGE - 3, b"across"), (8, b"one word"), (9, b"odd word")]
    for offset, data in [*stores, (SIZE - 8, b"the last"), (77, b"")]:
        region.write(offset, data)
        expected[offset : offset + len(data)] = data
        assert read(region, 0, SIZE) == expected
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    region.write(100, array.data)
    expected[100:124] = array.tobytes()
    region.flush(0, 124)
    region.flush(SIZE - 8, 8)
    region.fence()
    region.fence()
    region.publish()
    assert path.read_bytes() == expected
    assert region.size == SIZE
    assert region.path == path


@needs_libpmem
def test_what_is_outside_of_it_is_a_bug(region: PmemRegion) -> None:
    for offset, length in ((-8, 8), (SIZE, 1), (SIZE - 4, 8), (0, SIZE + 1)):
        with pytest.raises(ValueError, match="bytes at"):
            region.write(offset, bytes(length))
        with pytest.raises(ValueError, match="bytes at"):
            region.read_into(offset, memoryview(bytearray(length)))
        with pytest.raises(ValueError, match="bytes at"):
            region.flush(offset, length)


@needs_libpmem
def test_one_process_has_it_until_it_is_closed(region: PmemRegion, path: Path) -> None:
    region.publish()
    with pytest.raises(StorageError) as caught:
        open_region(path, size=1, new=False, medium="persistent-memory")
    assert caught.value.code == "mirror-in-use"
    region.close()
    region.close()
    with pytest.raises(RuntimeError, match="closed"):
        region.fence()
    open_region(path, size=1, new=False, medium="file").close()


class Failing:
    """libpmem on a medium that fails at one call."""

    def __init__(self, call: str) -> None:
        self._call = call
        self._library = load_library()

    def __getattr__(self, name: str) -> object:
        if name != self._call:
            return getattr(self._library, name)
        return self._fail

    def _fail(self, *arguments: object) -> object:
        if self._call == "pmem_map_file":
            self._library.pmem_map_file(b"/proc/nothing", *arguments[1:])
            return pmem_region._FFI.NULL
        pmem_region._FFI.errno = errno.EIO
        return -1


@needs_libpmem
def test_after_a_failed_fence_the_region_is_out_of_use(path: Path) -> None:
    file = MediumFile.create(path, size=SIZE)
    region = PmemRegion(file, Failing("pmem_msync"))
    region.write(0, b"a")
    region.flush(0, 1)
    for use in (region.fence, region.fence, lambda: region.write(0, b"a")):
        with pytest.raises(StorageError) as caught:
            use()
        assert caught.value.code == "mirror-unwritable"
    region.close()


@needs_libpmem
def test_a_fence_covers_what_another_process_stored(
    region: PmemRegion, path: Path
) -> None:
    region.write(0, b"a")
    region.publish()
    region.close()
    again = PmemRegion(MediumFile.open(path, room=SIZE), Failing("pmem_msync"))
    again.flush(0, SIZE)
    with pytest.raises(StorageError) as caught:
        again.fence()
    assert caught.value.code == "mirror-unwritable"
    again.close()


@needs_libpmem
def test_a_file_that_cannot_be_mapped_is_told_and_given_back(path: Path) -> None:
    file = MediumFile.create(path, size=SIZE)
    with pytest.raises(StorageError) as caught:
        PmemRegion(file, Failing("pmem_map_file"))
    assert caught.value.code == "mirror-unwritable"
    assert list(path.parent.iterdir()) == []
