"""A party's sealed records, opened one by one in the memory of whoever has the key.

Form: ``docs/spec/sealed-data.md``. The file is the host's: it may be another, cut off,
put together anew, or changed while it is read. So its manifest is compared with what
the plan pins, its length with what the manifest says, and each record is authenticated
in its place after it was copied into this process's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from cloister.errors import StorageError
from cloister.storage.data_manifest import Manifest
from cloister.storage.keys import Secret, key_id
from cloister.storage.manifest_signature import SignedManifest, verify_manifest
from cloister.storage.record_layout import check_schema, layout_digest
from cloister.storage.records import Schema
from cloister.storage.sealed_data_set import SealedDataSet
from cloister.storage.sealed_file import HeldFile, check_length, manifest_line


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPin:
    """What a plan says of a party's sealed data.

    Attributes:
        digest: The manifest's.
        owner: The party's key.
        key: Name of the data key.
    """

    digest: str
    owner: str
    key: str


class UnopenedData:
    """A sealed data set without its key: its manifest, and how its records lie.

    Made by `read_sealed_data`. Nothing in it is known to be anybody's but the owner's
    whose key the manifest names; `check_pin` compares that with a plan.

    Attributes:
        path: The file, for messages.
        signed: Its manifest.
        size_bytes: Length of the file.
    """

    __slots__ = ("_file", "path", "signed", "size_bytes")

    def __init__(
        self, path: Path, file: HeldFile, signed: SignedManifest, size_bytes: int
    ) -> None:
        self.path = path
        self._file = file
        self.signed = signed
        self.size_bytes = size_bytes

    @property
    def manifest(self) -> Manifest:
        """What the data set says of itself."""
        return self.signed.manifest

    def check_pin(self, pin: DataPin) -> Self:
        """Returns itself, if it is the very data set that a plan pins.

        1. Its manifest has the digest that the plan names.
        2. The manifest's owner is the plan's party.
        3. It is sealed under the data key that the plan names.

        Raises:
            StorageError: If it is not (``data-differs``, ``data-foreign``,
                ``data-key-differs``).
        """
        # Step 1
        _check_same(
            "data-differs",
            f"{self.path} is not what the plan pins",
            expected=pin.digest,
            got=self.signed.digest,
        )
        return self.check_owner(owner=pin.owner, key=pin.key)

    def check_owner(self, *, owner: str, key: str) -> Self:
        """Returns itself, if this owner sealed it under this data key.

        Steps 2 and 3 of `check_pin`, for records that a plan does not pin.

        Raises:
            StorageError: If not (``data-foreign``, ``data-key-differs``).
        """
        # Step 2
        _check_same(
            "data-foreign",
            f"{self.path} was sealed by somebody else",
            expected=owner,
            got=self.manifest.owner,
        )
        # Step 3
        _check_same(
            "data-key-differs",
            f"{self.path} is sealed under another data key",
            expected=key,
            got=self.manifest.key,
        )
        return self

    def open(self, key: Secret, *, schema: Schema) -> SealedDataSet:
        """Returns the records; each is decrypted when it is read.

        1. The key is the one that the manifest names.
        2. The records are the task's: names, types and shapes are equal, in order, and
           no bound that the manifest names is wider than the task's. Where it names
           none, values are held to the task's as they are read.

        Args:
            key: The data key.
            schema: The task's.

        Raises:
            ConfigError: If no record could follow the task's schema
                (``schema-invalid``).
            StorageError: If the key is another (``data-key-differs``), or the records
                are not the task's (``data-schema``).
        """
        # Step 1
        _check_same(
            "data-key-differs",
            f"{self.path} does not open with this key",
            expected=self.manifest.key,
            got=key_id("data", key),
        )
        # Step 2
        bounded = _bounded(self.path, self.manifest.schema, schema)
        return SealedDataSet(self.path, self._file, self.signed, key, schema=bounded)

    def close(self) -> None:
        """Closes the file; opened records cannot be read any more."""
        self._file.close()


def read_sealed_data(path: Path) -> UnopenedData:
    """Returns the sealed data set in `path`, without its key.

    1. The file begins and ends as a sealed data set does.
    2. Its manifest is signed by the owner that it names.
    3. The file is as long as the manifest's records: none is missing, none is extra.

    Left to the caller: whether it is the right data set (`UnopenedData.check_pin`), and
    every record.

    Raises:
        ConfigError: If there is no such file (``data-missing``).
        StorageError: If it cannot be read, or is not such a file (``data-unreadable``,
            ``data-malformed``, ``data-signature``, ``data-truncated``,
            ``data-surplus``).
    """
    file = HeldFile(path)
    try:
        size = file.size()
        # Step 1
        line = manifest_line(path, file, size)
        # Step 2
        signed = verify_manifest(line)
        # Step 3
        check_length(path, signed.manifest, size, manifest_bytes=len(line))
    except BaseException:
        # Also on Ctrl-C: nobody has this file yet to close it. Raised again.
        file.close()
        raise
    return UnopenedData(path, file, signed, size)


def _bounded(path: Path, stored: Schema, wanted: Schema) -> Schema:
    """Returns the stored fields, each with the narrower of both bounds."""
    remedy = "Seal the data in the task's format, or correct schema() in the task."
    check_schema(wanted)
    if layout_digest(stored) != layout_digest(wanted):
        raise StorageError(
            f"the records of {path} are not the task's",
            code="data-schema",
            expected=_in_words(wanted),
            got=_in_words(stored),
            remedy=remedy,
        )
    for own, field in zip(stored.fields, wanted.fields, strict=True):
        if own.below is None or field.below is None:
            continue
        if own.below > field.below:
            raise StorageError(
                f"{path} may hold a {field.name} that the task does not know",
                code="data-schema",
                expected=f"values from 0 to {field.below - 1}",
                got=f"0 to {own.below - 1}",
                remedy=remedy,
            )
    return Schema(
        fields=tuple(
            own if own.below is not None else replace(own, below=field.below)
            for own, field in zip(stored.fields, wanted.fields, strict=True)
        )
    )


def _in_words(schema: Schema) -> str:
    return ", ".join(f"{f.name} {f.dtype}{[*f.shape]}" for f in schema.fields)


def _check_same(code: str, what: str, *, expected: str, got: str) -> None:
    if expected != got:
        raise StorageError(
            what,
            code=code,
            expected=expected,
            got=got,
            remedy="Restore the data that the plan names, or have all parties sign a"
            " plan that pins this.",
        )
