"""Labelled images in memory, dealt out to parties evenly or by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords, MemorySource

from cloister.storage.raw_shard import open_raw_shard
from cloister.storage.records import DataSource, Records, Schema
from cloister.workloads.shards import split_cifar, write_digit_shards

_SIZE = 32
_CLASSES = 10


def digits(directory: Path, schema: Schema) -> MemorySource:
    """Returns the demo's digits as one party's data.

    Args:
        directory: Where files go.
        schema: Of the task that reads them.
    """
    write_digit_shards([directory], seed=7)
    shard = open_raw_shard(directory, schema)
    return MemorySource(
        {
            "train": _copied(shard.split("train")),
            "held-out": _copied(shard.split("held-out")),
        }
    )


def deal_evenly(whole: MemorySource, parties: Sequence[str]) -> dict[str, DataSource]:
    """Returns each party's share: every so many-th record of both splits."""
    count = len(parties)
    return {
        party: MemorySource(
            {
                name: _taken(records, np.arange(place, len(records), count))
                for name, records in whole.splits.items()
            }
        )
        for place, party in enumerate(parties)
    }


def deal_by_label(
    whole: MemorySource, parties: Sequence[str], *, labels_each: int, seed: int
) -> dict[str, DataSource]:
    """Returns each party's share: training records of few labels, held-out ones of all.

    McMahan et al., 2017, section 3: records sorted by label are cut into as many pieces
    of one size as there are labels to give, and each party gets some at random.

    Args:
        whole: All records.
        parties: Who gets them.
        labels_each: Pieces a party; nearly as many labels.
        seed: Decides who gets which.
    """
    train = whole.splits["train"]
    labels = np.asarray(train.columns["label"])
    pieces = len(parties) * labels_each
    size = len(train) // pieces
    by_label = np.argsort(labels, kind="stable")[: pieces * size].reshape(pieces, size)
    dealt = np.random.default_rng(seed).permutation(pieces).reshape(len(parties), -1)
    evenly = deal_evenly(whole, parties)
    return {
        party: MemorySource(
            {
                "train": _taken(train, by_label[mine].ravel()),
                "held-out": _copied(evenly[party].split("held-out")),
            }
        )
        for party, mine in zip(parties, dealt, strict=True)
    }


def write_made_cifar(directory: Path, *, train: int, held_out: int, seed: int) -> None:
    """Writes made-up images in CIFAR-10's binary format, two files of training images.

    Each class is a picture of four coarse waves, always the same. A record is its
    picture, shifted by some pixels and drowned in noise: a network learns it in a few
    dozen steps, and chance is right in one of ten.

    Args:
        directory: Where; made if missing.
        train: Training records.
        held_out: Held-out records.
        seed: Of shifts, noise and labels.
    """
    pictures = _pictures()
    generator = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    half = train // 2
    for name, count in (
        ("data_batch_1.bin", half),
        ("data_batch_2.bin", train - half),
        ("test_batch.bin", held_out),
    ):
        labels = generator.integers(0, _CLASSES, count)
        shifts = generator.integers(-4, 5, (count, 2))
        images = np.stack(
            [
                np.roll(pictures[label], tuple(shift), axis=(1, 2))
                for label, shift in zip(labels, shifts, strict=True)
            ]
        )
        images += generator.normal(0, 40, images.shape)
        table = images.clip(0, 255).astype(np.uint8).reshape(count, -1)
        rows = np.concatenate([labels.astype(np.uint8)[:, None], table], axis=1)
        (directory / name).write_bytes(rows.tobytes())


def cifar_shards(
    source: Path, parties: Sequence[str], schema: Schema, *, directory: Path
) -> Mapping[str, DataSource]:
    """Returns each party's share of a CIFAR-10 directory, through files as in a run."""
    split_cifar(source, [directory / party for party in parties])
    return {party: open_raw_shard(directory / party, schema) for party in parties}


def _pictures() -> NDArray[np.float64]:
    """Returns one picture a class: (classes, 3, size, size), values around 128."""
    generator = np.random.default_rng(0)
    at = np.arange(_SIZE) * (2 * np.pi / _SIZE)
    pictures = np.full((_CLASSES, 3, _SIZE, _SIZE), 128.0)
    for _ in range(4):
        rows, columns = generator.integers(0, 4, (2, _CLASSES, 3, 1, 1))
        phase = generator.uniform(0, 2 * np.pi, (_CLASSES, 3, 1, 1))
        pictures += 25 * np.sin(rows * at[:, None] + columns * at + phase)
    return pictures


def _copied(records: Records) -> MemoryRecords:
    return _taken(records, np.arange(len(records)))


def _taken(records: Records, indices: NDArray[np.int64]) -> MemoryRecords:
    return MemoryRecords(records.read(indices))
