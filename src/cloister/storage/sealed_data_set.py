"""A sealed data set with its key: what a task reads, decrypted as it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from typing_extensions import override

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.manifest_signature import SignedManifest
from cloister.storage.record_cipher import TAG_BYTES, RecordCipher
from cloister.storage.record_layout import layout_digest
from cloister.storage.record_stream import chunk_records
from cloister.storage.records import DataSource, Schema, SplitName
from cloister.storage.sealed_file import MAGIC, HeldFile
from cloister.storage.sealed_records import SealedRecords


class SealedDataSet(DataSource):
    """A sealed data set with its key; made by `UnopenedData.open`.

    Args:
        path: The file, for messages.
        file: The file.
        signed: Its manifest.
        key: The data key.
        schema: The manifest's fields, with the bounds that values are held to.

    Attributes:
        digest: What a plan's ``data`` pins.
    """

    __slots__ = ("_path", "_piece", "_splits", "digest")

    def __init__(
        self,
        path: Path,
        file: HeldFile,
        signed: SignedManifest,
        key: Secret,
        *,
        schema: Schema,
    ) -> None:
        manifest = signed.manifest
        cipher = RecordCipher(
            key,
            dataset_id=manifest.dataset_id,
            layout=layout_digest(manifest.schema),
        )
        size = manifest.schema.record_bytes + TAG_BYTES
        starts: dict[SplitName, int] = {
            "train": len(MAGIC),
            "held-out": len(MAGIC) + manifest.train * size,
        }
        self.digest = signed.digest
        self._path = path
        self._piece = chunk_records(schema.record_bytes)
        self._splits = {
            name: SealedRecords(
                path,
                file,
                name,
                start=start,
                count=manifest.records(name),
                schema=schema,
                cipher=cipher,
            )
            for name, start in starts.items()
        }

    @override
    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(r)}" for name, r in self._splits.items())
        return f"SealedDataSet({sizes}, {self.digest})"

    @override
    def split(self, name: SplitName) -> SealedRecords:
        """Returns the records of one split.

        Raises:
            StorageError: If it has none (``data-empty``).
        """
        records = self._splits[name]
        if not len(records):
            raise StorageError(
                f"the {name} split of {self._path} has no records",
                code="data-empty",
                expected="at least one record",
                remedy="Seal the data with some: --held-out N makes them of the last"
                " training records.",
            )
        return records

    def verify(self, on_records: Callable[[int], None] = lambda _: None) -> int:
        """Returns the number of records, after every one was opened in its place.

        Args:
            on_records: Told how many were opened in all.

        Raises:
            StorageError: If one does not open.
        """
        done = 0
        for records in self._splits.values():
            for start in range(0, len(records), self._piece):
                stop = min(start + self._piece, len(records))
                records.read(np.arange(start, stop))
                done += stop - start
                on_records(done)
        return done
