"""Divides public data sets among parties, in CIFAR-10's binary layout.

For the demo and for trials: in earnest every party has its own data already. Every
record goes to exactly one party; a file takes its name when it is complete.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError, StorageError
from cloister.storage.raw_files import FILE_PATTERNS
from cloister.workloads.digits import digit_records

CIFAR_RECORD_BYTES = 1 + 3 * 32 * 32
_CHUNK_RECORDS = 1024


def write_digit_shards(directories: Sequence[Path], *, seed: int) -> None:
    """Writes scikit-learn's 1,797 scanned digits as one shard a directory.

    A record is as in `workloads.digits`. Which fifth is held out does not depend on
    `seed`; who gets what does.

    Args:
        directories: One a party, made if missing; they must hold no data yet.
        seed: Decides the division.

    Raises:
        ConfigError: If scikit-learn is missing, or the directories cannot be used.
        StorageError: If a file cannot be written.
    """
    _check_directories(directories)
    splits = digit_records(seed=seed)
    with _file_errors():
        _write_division("data_batch_1.bin", [splits["train"]], directories, first=0)
        _write_division("test_batch.bin", [splits["held-out"]], directories, first=0)


def split_cifar(source: Path, directories: Sequence[Path]) -> None:
    """Deals the records of a CIFAR-10 binary directory out to parties, in turn.

    Each party gets files of the same names. Record number i of a split, counted through
    its files, goes to party i modulo their number.

    Args:
        source: Holds ``data_batch*.bin`` and ``test_batch*.bin``.
        directories: One a party, made if missing; they must hold no data yet.

    Raises:
        ConfigError: If files are missing, there are fewer records than parties, or the
            directories cannot be used.
        StorageError: If a source file is cut off, or a file cannot be read or written.
    """
    _check_directories(directories)
    splits = [_source_files(source, pattern) for pattern in FILE_PATTERNS.values()]
    with _file_errors():
        for paths in splits:
            _deal_out(paths, directories)


def _check_directories(directories: Sequence[Path]) -> None:
    places = {directory.resolve() for directory in directories}
    if not directories or len(places) != len(directories):
        raise ConfigError(
            "shards need a directory each",
            code="shards-invalid",
            expected="at least one directory, and none twice",
            got=f"{len(directories)}, {len(places)} of them distinct",
            remedy="Give each party its own directory.",
        )
    for directory in directories:
        found = [f for p in FILE_PATTERNS.values() for f in directory.glob(p)]
        if found:
            raise ConfigError(
                f"{directory} holds data already",
                code="data-exists",
                expected="no data_batch*.bin and no test_batch*.bin",
                got=found[0].name,
                remedy="Remove it, or give another directory.",
            )


def _source_files(source: Path, pattern: str) -> list[Path]:
    paths = sorted(source.glob(pattern))
    if not paths:
        raise ConfigError(
            f"{source} holds no file {pattern}",
            code="data-missing",
            expected="the binary version of CIFAR-10: data_batch_1.bin, test_batch.bin",
            remedy="Unpack cifar-10-binary.tar.gz and give the directory it makes.",
        )
    return paths


def _count_records(path: Path) -> int:
    size = path.stat().st_size
    count, rest = divmod(size, CIFAR_RECORD_BYTES)
    if rest:
        raise StorageError(
            f"{path} is cut off, or is no CIFAR-10 file",
            code="data-truncated",
            expected=f"a multiple of {CIFAR_RECORD_BYTES} bytes",
            got=f"{size} bytes",
            remedy="Fetch the data set again.",
        )
    return count


def _deal_out(paths: Sequence[Path], directories: Sequence[Path]) -> None:
    counts = [_count_records(path) for path in paths]
    if sum(counts) < len(directories):
        raise ConfigError(
            f"{paths[0].parent} has too few records",
            code="data-too-few",
            expected=f"at least one for each of {len(directories)} parties",
            got=f"{sum(counts)} in {', '.join(path.name for path in paths)}",
            remedy="Use more data or fewer parties.",
        )
    firsts = itertools.accumulate(counts, initial=0)
    for path, first in zip(paths, firsts, strict=False):
        _write_division(path.name, _chunks(path), directories, first=first)


def _chunks(path: Path) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        while content := file.read(_CHUNK_RECORDS * CIFAR_RECORD_BYTES):
            yield np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD_BYTES)


def _write_division(
    name: str,
    chunks: Iterable[NDArray[np.uint8]],
    directories: Sequence[Path],
    *,
    first: int,
) -> None:
    """Deals the records of `chunks` out to a file `name` in each directory.

    Each file takes its name when it is complete: a part of a shard would look whole.
    """
    parts = [directory / f"{name}.part" for directory in directories]
    try:
        for part in parts:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(b"")
        for records in chunks:
            for party, part in enumerate(parts):
                mine = records[(party - first) % len(parts) :: len(parts)]
                with part.open("ab") as file:
                    file.write(mine.tobytes())
            first += len(records)
        for part in parts:
            part.replace(part.with_suffix(""))
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot divide the data: {error.strerror}",
            code="data-unwritable",
            got=str(error.filename),
            remedy="Check the directories' permissions and free space.",
        ) from error
