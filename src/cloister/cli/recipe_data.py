"""What the recipes train on, and how it is dealt out to parties.

For a demonstration and for trials: in earnest every party has its own data already,
and seals it at its own site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cloister.errors import ConfigError
from cloister.storage.formats import open_format
from cloister.storage.record_stream import RecordStream
from cloister.workloads.breast_cancer import deal_breast_cancer
from cloister.workloads.dealing import deal_in_turn
from cloister.workloads.digits import DigitStream

# Where all data comes from, or None where it is bundled; who gets it; and a seed that
# decides who gets what. Returns each party's records.
Dealer = Callable[[Path | None, Sequence[str], int], Mapping[str, RecordStream]]

# Of a source without a test set this share is held out: one record in so many.
_HELD_OUT_SHARE = 5


def deal_digits(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each party's scanned digits, which come with scikit-learn.

    Raises:
        ConfigError: If scikit-learn is missing, or a source is given.
    """
    _check_bundled(source, what="the scanned digits")
    return _in_turn(DigitStream(seed=seed), parties)


def deal_cifar(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each party's share of a CIFAR-10 binary directory, whatever the seed.

    Raises:
        ConfigError: If there is no such directory.
        StorageError: If a file cannot be read.
    """
    del seed
    place = _given(source, what="CIFAR-10", files="data_batch_*.bin, test_batch.bin")
    return _in_turn(open_format("cifar-10", place), parties)


def deal_mnist(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each party's share of a directory of MNIST files, whatever the seed.

    Where only one pair of files is there, the last fifth of it is held out.

    Raises:
        ConfigError: If there is no such directory.
        StorageError: If a file cannot be read.
    """
    del seed
    place = _given(source, what="MNIST", files="*-images-idx3-ubyte(.gz) and labels")
    if any(place.glob("train-*")) and any(place.glob("t10k-*")):
        return _in_turn(open_format("mnist", place), parties)
    total = open_format("mnist", place, held_out="all").total
    if total is None:
        raise RuntimeError("an IDX file says how many records it has")
    held_out = total // _HELD_OUT_SHARE
    return _in_turn(open_format("mnist", place, held_out=held_out), parties)


def deal_tumours(
    source: Path | None, parties: Sequence[str], seed: int
) -> Mapping[str, RecordStream]:
    """Returns each hospital's tumours, which come with scikit-learn.

    Raises:
        ConfigError: If scikit-learn is missing, a source is given, or there are too few
            hospitals or too many.
    """
    _check_bundled(source, what="the breast-cancer records")
    return dict(deal_breast_cancer(parties, seed=seed))


def _check_bundled(source: Path | None, *, what: str) -> None:
    """Refuses a source of data that would be ignored.

    Raises:
        ConfigError: If one is given.
    """
    if source is not None:
        raise ConfigError(
            "the data directory would be ignored",
            code="data-unused",
            expected=f"no --data: {what} are bundled",
            got=str(source),
            remedy="Leave --data out, or choose the recipe with --recipe.",
        )


def _given(source: Path | None, *, what: str, files: str) -> Path:
    if source is None or not source.is_dir():
        raise ConfigError(
            f"there is no {what} to train on",
            code="data-missing",
            expected=f"--data with a directory of {files}",
            got="none" if source is None else str(source),
            remedy="docs/how-to/data.md says where to get it.",
        )
    return source


def _in_turn(whole: RecordStream, parties: Sequence[str]) -> Mapping[str, RecordStream]:
    return dict(zip(parties, deal_in_turn(whole, len(parties)), strict=True))
