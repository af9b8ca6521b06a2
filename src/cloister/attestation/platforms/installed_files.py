"""Every file below a directory, in one order, with its hash. No trust decision here.

What is recorded is what Python can import or a program can read: regular files with
their path and content, symbolic links with their text and what they lead to.
Directories as such are not recorded, for an empty one cannot shadow anything. Left out
are only the ``.pyc`` files that Python itself keeps in ``__pycache__``: nodes neither
read nor write them. A ``.pyc`` anywhere else is importable without source, and is
recorded.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import PlatformError

# hashlib releases the interpreter lock, but most files are small and their opening
# needs it: two threads were measured fastest, for 1.2 GB in 22,000 files.
HASH_THREADS = 2
# Large enough that a read costs little beside the hashing, small enough for the cache.
READ_BYTES = 1 << 20

_CACHE_DIRECTORY = "__pycache__"
# Python writes a temporary `x.pyc.<number>` and renames it.
_CACHED_BYTECODE = re.compile(r".*\.pyc(\.[0-9]+)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file or link below a root.

    Attributes:
        path: Path relative to the root, "/" between the parts; empty for the root.
        link: Text of the symbolic link; empty for a regular file.
        file: Where the content lies; empty for a link to a directory, or to nowhere.
        same_as: For a link to a directory whose content is recorded at another path,
            "/" and that path; otherwise empty.
    """

    path: bytes
    link: bytes
    file: str
    same_as: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashed:
    """A file's content in short.

    Attributes:
        sha256: Its digest, 32 bytes.
        size: Its length in bytes.
    """

    sha256: bytes
    size: int


def length_prefixed(*parts: bytes) -> bytes:
    """Returns the parts so joined that no other parts give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def list_entries(root: Path, *, leave_out: frozenset[str] = frozenset()) -> list[Entry]:
    """Returns everything below `root` in order of path; empty if it does not exist.

    Args:
        root: A directory, or a single file.
        leave_out: Names of directories directly below `root` that are not its own.

    Raises:
        PlatformError: If something cannot be listed, or is neither file, directory
            nor link.
    """
    real = os.path.realpath(root)
    try:
        if not _exists(real):
            return []
        if Path(real).is_file():
            return [Entry(path=b"", link=b"", file=real)]
        found = list(_Walk().below(real, b"", leave_out=leave_out))
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else real
        raise _unusable(name, f"cannot be listed: {error.strerror}") from error
    return sorted(found, key=lambda entry: entry.path)


def hash_files(files: Sequence[str]) -> dict[str, Hashed]:
    """Returns the hash of each file; each is read once however often it is named.

    Raises:
        PlatformError: If one cannot be read.
    """
    waiting = deque(sorted(set(files)))
    with ThreadPoolExecutor(max_workers=HASH_THREADS) as pool:
        done = [pool.submit(_hash_some, waiting) for _ in range(HASH_THREADS)]
        return {name: value for part in done for name, value in part.result().items()}


def encode_entries(entries: Sequence[Entry], hashed: dict[str, Hashed]) -> bytes:
    """Returns the one encoding of a root's entries."""
    return length_prefixed(
        *(
            length_prefixed(
                entry.path,
                entry.link,
                entry.same_as,
                hashed[entry.file].sha256 if entry.file else b"",
            )
            for entry in entries
        )
    )


class _Walk:
    """One walk; remembers the directories it was in, so that links cannot loop."""

    __slots__ = ("_walked",)

    def __init__(self) -> None:
        self._walked: dict[str, bytes] = {}

    def below(
        self, directory: str, prefix: bytes, *, leave_out: frozenset[str] = frozenset()
    ) -> Iterator[Entry]:
        self._walked.setdefault(directory, b"/" + prefix)
        cached = directory.endswith(f"/{_CACHE_DIRECTORY}")
        for item in _sorted_items(directory):
            if item.name in leave_out or (
                cached and _CACHED_BYTECODE.fullmatch(item.name)
            ):
                continue
            path = prefix + os.fsencode(item.name)
            if item.is_symlink():
                yield from self._link(item, path)
            elif item.is_dir(follow_symlinks=False):
                yield from self.below(item.path, path + b"/")
            elif item.is_file(follow_symlinks=False):
                yield Entry(path=path, link=b"", file=item.path)
            else:
                raise _unusable(item.path, "is neither file, directory nor link")

    def _link(self, item: os.DirEntry[str], path: bytes) -> Iterator[Entry]:
        text = os.fsencode(Path(item.path).readlink())
        real = Path(os.path.realpath(item.path))
        if real.is_file():
            yield Entry(path=path, link=text, file=str(real))
            return
        if real.exists() and not real.is_dir():
            raise _unusable(item.path, "leads to neither file nor directory")
        # A directory walked before has its content recorded there. Of a link that
        # leads nowhere, or round in a circle, the text is all there is.
        same_as = self._walked.get(str(real), b"")
        yield Entry(path=path, link=text, file="", same_as=same_as)
        if real.is_dir() and not same_as:
            yield from self.below(str(real), path + b"/")


def _sorted_items(directory: str) -> list[os.DirEntry[str]]:
    """Items in one order, so that which of two links is followed never varies."""
    with os.scandir(directory) as items:
        return sorted(items, key=lambda item: os.fsencode(item.name))


def _exists(path: str) -> bool:
    """Tells what is not there from what this user may not see; the latter raises."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _hash_some(waiting: deque[str]) -> dict[str, Hashed]:
    """Hashes files off the shared queue until it is empty; deques are thread-safe."""
    hashed: dict[str, Hashed] = {}
    buffer = memoryview(bytearray(READ_BYTES))
    while True:
        try:
            name = waiting.popleft()
        except IndexError:
            return hashed
        hashed[name] = _hash_file(name, buffer)


def _hash_file(name: str, buffer: memoryview) -> Hashed:
    digest = hashlib.sha256()
    size = 0
    try:
        # Plain descriptors: of tens of thousands of small files, opening is the cost.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while count := os.readv(descriptor, [buffer]):
                digest.update(buffer[:count])
                size += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unusable(name, f"cannot be read: {error.strerror}") from error
    return Hashed(sha256=digest.digest(), size=size)


def _unusable(path: str, why: str) -> PlatformError:
    return PlatformError(
        f"installed file cannot be measured: {path} {why}",
        code="measurement-unreadable",
        remedy="make it readable for this user, or remove it from the installation",
    )
