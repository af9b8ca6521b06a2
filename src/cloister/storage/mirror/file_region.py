"""A region in a file, on any file system.

It is mapped, and read there. Stores are made to the mapping only where the file system
is in memory. Elsewhere the kernel takes each page away from a mapping when it writes it
back, and giving it again at the next store costs twelve times what `pwrite` to the same
page cache does (144 ms for 100 MiB on ext4, against 12 ms; and a fence after a store of
eight bytes takes 0.5 ms, against 0.15 ms). The kernel copies eight aligned bytes at
once, whatever becomes of the process meanwhile.

A host that cuts the file short, or a medium that cannot read it any more, ends the
process with SIGBUS: nobody can go on from there.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path
from typing import Final

from typing_extensions import Buffer

from cloister.errors import StorageError
from cloister.storage.mirror.mapped_bytes import MappedBytes, bytes_of
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.region import check_range, medium_failed
from cloister.storage.mirror.subject import Survives

# MADV_POPULATE_WRITE, since Linux 5.14.
_POPULATE_WRITE: Final = 23


class FileRegion:
    """See `Region`.

    Args:
        file: Becomes the region's, which closes it.

    Raises:
        StorageError: If it cannot be mapped (``mirror-unwritable``).
    """

    def __init__(self, file: MediumFile) -> None:
        self._file = file
        self._in_memory = file.survives == "process-death"
        self._flushed = False
        self._failure: StorageError | None = None
        try:
            self._mapping = mmap.mmap(file.descriptor, file.size)
        except OSError as error:
            file.close()
            raise medium_failed(file.path, error) from error
        self._mapped: MappedBytes | None = MappedBytes(self._mapping)
        if self._in_memory:
            # The first store to each page costs ten times the later ones; older
            # kernels cannot be asked, and pay then.
            with contextlib.suppress(OSError):
                self._mapping.madvise(_POPULATE_WRITE)

    @property
    def path(self) -> Path:
        """See `Region`."""
        return self._file.path

    @property
    def size(self) -> int:
        """See `Region`."""
        return self._file.size

    @property
    def survives(self) -> Survives:
        """See `Region`."""
        return self._file.survives

    def write(self, offset: int, data: Buffer) -> None:
        """See `Region`."""
        mapped = self._usable()
        view = bytes_of(data)
        if self._in_memory:
            mapped.store(offset, view)
            return
        check_range(offset, view.size, limit=self.size)
        try:
            self._write_out(offset, view.data)
        except OSError as error:
            raise self._failed(error) from error

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Region`."""
        self._usable().load(offset, buffer)

    def flush(self, offset: int, length: int) -> None:
        """See `Region`."""
        self._usable()
        check_range(offset, length, limit=self.size)
        # The kernel keeps the books of what is to be written back, by pages.
        self._flushed = True

    def fence(self) -> None:
        """See `Region`."""
        self._usable()
        if not self._flushed:
            return
        try:
            # As msync does, but Python holds up all threads while that runs.
            os.fdatasync(self._file.descriptor)
        except OSError as error:
            raise self._failed(error) from error
        self._flushed = False

    def publish(self) -> None:
        """See `Region`."""
        self._usable()
        self._file.publish()

    def close(self) -> None:
        """See `Region`."""
        if self._mapped is None:
            return
        self._mapped = None
        self._file.close()
        # Whoever still looks at a part of it keeps the mapping, but not the lock.
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def _usable(self) -> MappedBytes:
        if self._mapped is None:
            raise RuntimeError("the region is closed")
        if self._failure is not None:
            # The kernel forgets what it could not write: only what is read back from
            # the medium, by whoever opens it again, is known to be there.
            raise self._failure
        return self._mapped

    def _write_out(self, offset: int, view: memoryview) -> None:
        while view:
            count = os.pwrite(self._file.descriptor, view, offset)
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            offset, view = offset + count, view[count:]

    def _failed(self, error: OSError) -> StorageError:
        self._failure = medium_failed(self.path, error)
        return self._failure
