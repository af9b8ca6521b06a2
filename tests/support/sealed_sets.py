"""Sealed data sets made of a few records, and what lies where in their files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.storage.data_sealing import SealedData, seal_data
from cloister.storage.keys import Secret, key_id
from cloister.storage.record_cipher import TAG_BYTES
from cloister.storage.record_stream import Chunk
from cloister.storage.records import Batch, Field, Schema, SplitName
from cloister.storage.sealed_data import DataPin, UnopenedData, read_sealed_data
from cloister.storage.sealed_data_set import SealedDataSet
from cloister.storage.sealed_file import MAGIC

SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=10),
        Field(name="price", dtype="float32", shape=(2,)),
        Field(name="image", dtype="uint8", shape=(1, 3, 3)),
    )
)
SEALED_BYTES = SCHEMA.record_bytes + TAG_BYTES  # of one record in the file
DATA_KEY = Secret(bytes(range(32)))


def columns_of(count: int, *, seed: int = 0) -> Batch:
    """Returns records of `SCHEMA`."""
    generator = np.random.default_rng(seed)
    return {
        "label": generator.integers(0, 10, count).astype(np.uint8),
        "price": generator.normal(size=(count, 2)).astype(np.float32),
        "image": generator.integers(0, 256, (count, 1, 3, 3)).astype(np.uint8),
    }


@dataclass(frozen=True, kw_only=True)
class ColumnStream:
    """Records in memory as a format gives them: chunk by chunk."""

    splits: dict[SplitName, Batch]
    schema: Schema = SCHEMA
    format: str = "made"
    chunk_records: int = 3

    @property
    def total(self) -> int | None:
        return sum(len(next(iter(c.values()))) for c in self.splits.values())

    def chunks(self) -> Iterator[Chunk]:
        for split, columns in self.splits.items():
            count = len(next(iter(columns.values())))
            for start in range(0, count, self.chunk_records):
                piece = slice(start, start + self.chunk_records)
                yield Chunk(
                    split=split, columns={n: c[piece] for n, c in columns.items()}
                )


@dataclass(frozen=True)
class Owner:
    """Who seals: a party's key."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def owner(self) -> str:
        return f"ed25519:{self.key.public_key().public_bytes_raw().hex()}"

    def sign(self, message: bytes, /) -> bytes:
        return self.key.sign(message)


def some_stream(*, train: int = 7, held_out: int = 4, seed: int = 0) -> ColumnStream:
    """Returns records of both splits."""
    return ColumnStream(
        splits={
            "train": columns_of(train, seed=seed),
            "held-out": columns_of(held_out, seed=seed + 1),
        }
    )


@dataclass(frozen=True, kw_only=True)
class SealedSet:
    """A data set that somebody sealed, and what a plan would say of it."""

    stream: ColumnStream
    made: SealedData
    key: Secret

    @property
    def path(self) -> Path:
        return self.made.path

    @property
    def pin(self) -> DataPin:
        return DataPin(
            digest=self.made.digest,
            owner=self.made.manifest.owner,
            key=key_id("data", self.key),
        )

    def place(self, split: SplitName, index: int) -> slice:
        """Returns where a record lies in the file."""
        before = 0 if split == "train" else self.made.manifest.train
        start = len(MAGIC) + (before + index) * SEALED_BYTES
        return slice(start, start + SEALED_BYTES)

    def found(self) -> UnopenedData:
        """Returns what a node finds, if it is what the plan pins."""
        return read_sealed_data(self.path).check_pin(self.pin)

    def opened(self) -> SealedDataSet:
        return self.found().open(self.key, schema=self.stream.schema)


def sealed_set(
    path: Path,
    *,
    stream: ColumnStream | None = None,
    key: Secret = DATA_KEY,
    owner: Owner | None = None,
) -> SealedSet:
    """Returns a data set that was sealed into `path`."""
    stream = some_stream() if stream is None else stream
    made = seal_data(stream, path=path, key=key, signer=owner or Owner())
    return SealedSet(stream=stream, made=made, key=key)


def same_records(batch: Batch, columns: Batch, indices: list[int]) -> bool:
    """Whether a batch is the records at `indices`, bit for bit."""
    return batch.keys() == columns.keys() and all(
        batch[name].tobytes() == columns[name][indices].tobytes()
        and batch[name].dtype == columns[name].dtype
        and batch[name].shape == columns[name][indices].shape
        for name in columns
    )
