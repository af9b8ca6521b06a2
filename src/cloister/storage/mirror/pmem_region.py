"""A region in persistent memory, mapped and flushed by libpmem; no kernel in between.

libpmem is the host's or the image's own; where there is none, so it is told. On memory
that is not persistent libpmem says so, and its pages go through the kernel after all.

Stores are temporal, and flushed by whoever calls `flush`: non-temporal ones of another
thread would not be fenced by this one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final, TypeAlias

import cffi
from typing_extensions import Buffer

from cloister.errors import PlatformError, StorageError
from cloister.storage.mirror.mapped_bytes import MappedBytes, bytes_of
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.region import WORD, check_range, medium_failed
from cloister.storage.mirror.subject import Survives

LIBRARY: Final = "libpmem.so.1"

_NO_FLUSH: Final = 1 << 5  # PMEM_F_MEM_NOFLUSH
_FFI: Final = cffi.FFI()
_FFI.cdef(
    """
    void *pmem_map_file(const char *path, size_t len, int flags, unsigned mode,
        size_t *mapped_lenp, int *is_pmemp);
    int pmem_unmap(void *addr, size_t len);
    void *pmem_memcpy(void *dest, const void *src, size_t len, unsigned flags);
    void pmem_flush(const void *addr, size_t len);
    void pmem_drain(void);
    int pmem_msync(const void *addr, size_t len);
    const char *pmem_errormsg(void);
    """
)
# What cffi made of the declarations above.
Library: TypeAlias = Any


def load_library(name: str = LIBRARY) -> Library:
    """Returns libpmem.

    Args:
        name: Its file, as the loader looks for it.

    Raises:
        PlatformError: If it is not there (``libpmem-missing``).
    """
    try:
        return _FFI.dlopen(name)
    except OSError as error:
        raise PlatformError(
            f"cannot load {name}",
            code="libpmem-missing",
            expected="libpmem 1.5 or newer",
            got="no such library",
            remedy="Install it (Debian: libpmem1), or keep states in files.",
        ) from error


class PmemRegion:
    """See `Region`.

    Args:
        file: Becomes the region's, which closes it.
        library: From `load_library`.

    Raises:
        StorageError: If it cannot be mapped (``mirror-unwritable``).
    """

    def __init__(self, file: MediumFile, library: Library) -> None:
        self._file = file
        self._pmem = library
        self._unsynced: tuple[int, int] | None = None
        self._failure: StorageError | None = None
        length, is_pmem = _FFI.new("size_t *"), _FFI.new("int *")
        # By its descriptor: the name may be another file's by now, or none's yet.
        name = f"/proc/self/fd/{file.descriptor}".encode()
        self._base = library.pmem_map_file(name, 0, 0, 0, length, is_pmem)
        if self._base == _FFI.NULL or length[0] != file.size:
            file.close()
            reason = _FFI.string(library.pmem_errormsg()).decode(errors="replace")
            raise medium_failed(file.path, OSError(errno.EINVAL, reason))
        self.persistent: Final = is_pmem[0] == 1
        """Whether the processor's own flushes make stores durable here."""
        view = _FFI.buffer(self._base, file.size)
        self._mapped: MappedBytes | None = MappedBytes(view)

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
        check_range(offset, view.size, limit=self.size)
        if view.size == WORD and offset % WORD == 0:
            mapped.store(offset, view)
        elif view.size:
            source = _FFI.from_buffer(view)
            self._pmem.pmem_memcpy(self._base + offset, source, view.size, _NO_FLUSH)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `Region`."""
        self._usable().load(offset, buffer)

    def flush(self, offset: int, length: int) -> None:
        """See `Region`."""
        self._usable()
        check_range(offset, length, limit=self.size)
        if self.persistent:
            self._pmem.pmem_flush(self._base + offset, length)
            return
        start, end = self._unsynced or (offset, offset + length)
        self._unsynced = (min(start, offset), max(end, offset + length))

    def fence(self) -> None:
        """See `Region`."""
        self._usable()
        if self.persistent:
            self._pmem.pmem_drain()
        elif self._unsynced is not None:
            start, end = self._unsynced
            if self._pmem.pmem_msync(self._base + start, end - start):
                error = OSError(_FFI.errno, os.strerror(_FFI.errno))
                self._failure = medium_failed(self.path, error)
                raise self._failure
            self._unsynced = None

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
        self._pmem.pmem_unmap(self._base, self.size)

    def _usable(self) -> MappedBytes:
        if self._mapped is None:
            raise RuntimeError("the region is closed")
        if self._failure is not None:
            raise self._failure
        return self._mapped
