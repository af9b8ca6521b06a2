"""The files of a raw shard, read into memory once, and their digest.

What is hashed is what is used: nothing is read a second time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError, StorageError
from cloister.storage.records import SplitName

FILE_PATTERNS: dict[SplitName, str] = {
    "train": "data_batch*.bin",
    "held-out": "test_batch*.bin",
}
_DIGEST_LABEL = b"cloister raw shard, version 1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBytes:
    """The files of one split.

    Attributes:
        names: Their names, in order.
        sizes: Their lengths in bytes.
        data: Their contents end to end: (sum(sizes),) uint8.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    data: NDArray[np.uint8]


def read_splits(directory: Path) -> dict[SplitName, SplitBytes]:
    """Returns every file of the shard in `directory`, by split, in order of names.

    Raises:
        ConfigError: If the directory or the files of a split are missing.
        StorageError: If a file cannot be read.
    """
    if not directory.is_dir():
        raise ConfigError(
            f"no data directory {directory}",
            code="data-missing",
            expected="a directory with data_batch*.bin and test_batch*.bin",
            remedy="Correct the data path in the site file.",
        )
    return {
        name: _read_split(directory, pattern) for name, pattern in FILE_PATTERNS.items()
    }


def _read_split(directory: Path, pattern: str) -> SplitBytes:
    paths = sorted(directory.glob(pattern))
    if not paths:
        raise ConfigError(
            f"{directory} holds no file {pattern}",
            code="data-missing",
            expected=f"one or more files {pattern} in CIFAR-10's binary layout",
            remedy="Put the files there, or correct the data path in the site file.",
        )
    try:
        return _read_files(paths)
    except OSError as error:
        raise StorageError(
            f"cannot read the data in {directory}: {error.strerror}",
            code="data-unreadable",
            remedy="Check the files' permissions and the disk.",
        ) from error


def _read_files(paths: Sequence[Path]) -> SplitBytes:
    sizes = tuple(path.stat().st_size for path in paths)
    # One buffer for the split: joining arrays afterwards would hold it all twice.
    data = np.empty(sum(sizes), np.uint8)
    at = 0
    for path, size in zip(paths, sizes, strict=True):
        with path.open("rb") as file:
            got = file.readinto(data[at : at + size].data)
        if got != size:
            raise StorageError(
                f"{path} shrank while it was read",
                code="data-truncated",
                expected=f"{size} bytes",
                got=f"{got} bytes",
                remedy="Let no other program write the data during training.",
            )
        at += size
    return SplitBytes(names=tuple(path.name for path in paths), sizes=sizes, data=data)


def digest(splits: Mapping[SplitName, SplitBytes]) -> str:
    """Returns ``sha256:<hex>`` over name, length and content of every file."""
    # Lengths stand before names and contents, so no two shards hash the same bytes.
    hasher = hashlib.sha256(_DIGEST_LABEL)
    for split in FILE_PATTERNS:
        content, at = splits[split], 0
        for name, size in zip(content.names, content.sizes, strict=True):
            encoded = name.encode("utf-8", "surrogateescape")
            hasher.update(len(encoded).to_bytes(8, "little") + encoded)
            hasher.update(size.to_bytes(8, "little"))
            hasher.update(content.data[at : at + size].data)
            at += size
    return f"sha256:{hasher.hexdigest()}"
