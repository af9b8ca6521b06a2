"""Seals a party's records into one file (``docs/spec/sealed-data.md``).

Record by record, as they come from their source: nothing but the records of one chunk
is in memory, and nothing but ciphertext reaches the disk. The file appears under its
name whole or not at all.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.data_manifest import SPLITS, Manifest, check_describable
from cloister.storage.keys import Secret, key_id
from cloister.storage.manifest_signature import (
    ManifestSigner,
    sign_manifest,
    verify_manifest,
)
from cloister.storage.record_cipher import DATASET_ID_BYTES, RecordCipher
from cloister.storage.record_layout import (
    check_schema,
    layout_digest,
    outside_bound,
    pack,
)
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Field, Schema, SplitName
from cloister.storage.sealed_file import END, LENGTH_BYTES, MAGIC
from cloister.storage.whole_file import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedData:
    """A sealed data set as it lies on disk.

    Attributes:
        path: Where it lies.
        digest: What a plan's ``data`` pins: its manifest's digest.
        manifest: What it says of itself.
        size_bytes: Length of the file.
    """

    path: Path
    digest: str
    manifest: Manifest
    size_bytes: int


def seal_data(
    stream: RecordStream,
    *,
    path: Path,
    key: Secret,
    signer: ManifestSigner,
    on_records: Callable[[int], None] = lambda _: None,
) -> SealedData:
    """Seals all records of a source and writes them to `path`, whole or not at all.

    Args:
        stream: The source. A file's order of records is kept.
        path: Where; it must not exist.
        key: The party's data key; the records' own key is derived from it.
        signer: The owner's key.
        on_records: Told, after each chunk, how many records were sealed in all.

    Raises:
        ConfigError: If the schema cannot describe stored records.
        StorageError: If the source cannot be read, has no records (``data-empty``),
            holds a value out of its bound (``data-value-out-of-range``) or more fields
            than a manifest has room for (``data-too-large``); or if `path` exists
            (``data-exists``) or cannot be written (``data-unwritable``).
    """
    schema = check_schema(stream.schema)
    check_describable(schema, source=stream.format)
    dataset_id = secrets.token_bytes(DATASET_ID_BYTES)
    cipher = RecordCipher(key, dataset_id=dataset_id, layout=layout_digest(schema))
    try:
        _check_new(path)
        with whole_file(path) as file:
            file.write(MAGIC)
            counts = _seal_chunks(stream, schema, cipher, file, on_records=on_records)
            manifest = Manifest(
                dataset_id=dataset_id,
                schema=schema,
                train=counts["train"],
                held_out=counts["held-out"],
                key=key_id("data", key),
                owner=signer.owner,
                source=stream.format,
            )
            line = sign_manifest(manifest, signer=signer)
            file.write(line)
            file.write(len(line).to_bytes(LENGTH_BYTES, "little") + END)
            size_bytes = file.tell()
            # Sealing may have taken hours, in which another began with this name.
            _check_new(path)
    except OSError as error:
        raise StorageError(
            f"cannot write the sealed data set {path}",
            code="data-unwritable",
            got=error.strerror or "an error",
            remedy="Check the directory's permissions and free space.",
        ) from error
    return SealedData(
        path=path,
        digest=verify_manifest(line).digest,
        manifest=manifest,
        size_bytes=size_bytes,
    )


def _check_new(path: Path) -> None:
    if path.is_symlink() or path.exists():
        raise StorageError(
            f"{path} exists already",
            code="data-exists",
            expected="a new file",
            remedy="Remove it, or give another name: a plan may pin it.",
        )


def _seal_chunks(
    stream: RecordStream,
    schema: Schema,
    cipher: RecordCipher,
    file: BinaryIO,
    *,
    on_records: Callable[[int], None],
) -> Counter[SplitName]:
    counts: Counter[SplitName] = Counter()
    for chunk in _in_order(stream.chunks()):
        first = counts[chunk.split]
        records = pack(chunk.columns, schema)
        for field in schema.fields:
            _check_bound(field, chunk.columns[field.name], chunk.split, first=first)
        file.writelines(
            cipher.seal(record.tobytes(), split=chunk.split, index=index)
            for index, record in enumerate(records, start=first)
        )
        counts[chunk.split] += len(chunk)
        on_records(counts.total())
    if not counts.total():
        raise StorageError(
            "the source has no records",
            code="data-empty",
            expected="at least one record",
            remedy="Give the party some data, or leave it out of the plan.",
        )
    return counts


def _in_order(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yields the chunks; where a record lies in the file follows from their order."""
    place = 0
    for chunk in chunks:
        if SPLITS.index(chunk.split) < place:
            raise RuntimeError("a format yields the training records first")
        place = SPLITS.index(chunk.split)
        yield chunk


def _check_bound(
    field: Field, column: NDArray[np.generic], split: SplitName, *, first: int
) -> None:
    if field.below is None:
        return
    outside = outside_bound(column, field.below).reshape(len(column), -1)
    rows = np.flatnonzero(outside.any(axis=1))
    if rows.size:
        # Not the value: a message may be read by others than the data's owner.
        raise StorageError(
            f"{split} record {first + int(rows[0])} has a {field.name} out of range",
            code="data-value-out-of-range",
            expected=f"0 to {field.below - 1}",
            remedy="Correct the record in the source.",
        )
