"""The formats that records come in before they are sealed, one a file.

`open_format` finds one by its name. Nothing here is used by a node: a node reads
sealed data sets only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cloister.errors import ConfigError
from cloister.storage.formats.arrays import open_arrays
from cloister.storage.formats.cifar import open_cifar
from cloister.storage.formats.criteo import open_criteo
from cloister.storage.formats.held_out import HeldOut, SourceStream, with_held_out
from cloister.storage.formats.mnist import open_mnist
from cloister.storage.record_stream import RecordStream

__all__ = ["FORMATS", "HeldOut", "open_format"]

# What each format reads, in a few words; the command line shows them.
FORMATS: Final = MappingProxyType(
    {
        "cifar-10": "a directory with data_batch*.bin and test_batch*.bin",
        "mnist": "a directory with IDX files train-* and t10k-*, plain or gzip",
        "criteo": "a file of 40 tab-separated columns, plain or gzip",
        "arrays": "a directory with one .npy file a field",
    }
)
_OPENERS: dict[str, Callable[[Path], SourceStream]] = {
    "cifar-10": open_cifar,
    "mnist": open_mnist,
    "criteo": open_criteo,
    "arrays": open_arrays,
}


def open_format(
    name: str, source: Path, *, held_out: HeldOut | None = None
) -> RecordStream:
    """Returns the records of a source, to be sealed.

    Args:
        name: One of `FORMATS`.
        source: The file or directory.
        held_out: Which records are held out, for a source that does not say it itself:
            the last so many of them, or ``"all"``. None for a source with a test set.

    Raises:
        ConfigError: If there is no such format (``data-format-unknown``), files are
            missing (``data-missing``) or there is a choice of them
            (``data-ambiguous``), or `held_out` does not fit the source.
        StorageError: If a file cannot be read (``data-unreadable``), is cut off
            (``data-truncated``), or is not in its format (``data-malformed``). What
            only reading the records tells is raised by the stream.
    """
    opener = _OPENERS.get(name)
    if opener is None:
        raise ConfigError(
            f"no data format {name!r}",
            code="data-format-unknown",
            expected=" or ".join(FORMATS),
            remedy="Name one of these formats, or save the records as arrays.",
        )
    return with_held_out(opener(source), held_out)
