"""Regions by their medium: how one is made, how one is found again."""

from __future__ import annotations

from pathlib import Path

from cloister.storage.mirror.file_region import FileRegion
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.region import Region
from cloister.storage.mirror.subject import Medium


def open_region(path: Path, *, size: int, new: bool, medium: Medium) -> Region:
    """Returns the region at `path`, held by this process alone.

    Args:
        path: The file; no link to one. Its directory exists.
        size: How many of its bytes are used, at least; they have room on the medium.
            Of what is there the length may be any.
        new: Whether it is made: all zeros, and under its name only when it is
            published. Otherwise what is there is opened.
        medium: What it lies on.

    Raises:
        StorageError: If there is none to open (``mirror-missing``), there is one where
            one was to be made (``mirror-exists``), another process has it
            (``mirror-in-use``), it is no whole number of pages (``mirror-damaged``),
            or its medium is full (``mirror-full``, with nothing left behind) or
            refuses (``mirror-unwritable``).
        PlatformError: If the medium cannot be used here (``libpmem-missing``).
    """
    if medium == "persistent-memory":
        # Only here, for importing cffi and reading declarations takes its time.
        from cloister.storage.mirror import pmem_region  # noqa: PLC0415

        library = pmem_region.load_library()
        return pmem_region.PmemRegion(_file(path, size, new=new), library)
    return FileRegion(_file(path, size, new=new))


def _file(path: Path, size: int, *, new: bool) -> MediumFile:
    if new:
        return MediumFile.create(path, size=size)
    return MediumFile.open(path, room=size)
