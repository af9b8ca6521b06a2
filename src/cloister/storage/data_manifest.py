"""The manifest of a sealed data set: what is in it, in a form with one spelling.

Form: ``docs/spec/sealed-data.md``. It lies in the clear, for hosts and auditors may
know how many records of which shape a party has; it holds nothing that follows from
their values. What this module does not do: say whose
it is; that is `manifest_signature`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError, StorageError
from cloister.storage.record_cipher import DATASET_ID_BYTES
from cloister.storage.record_layout import (
    MAX_BOUND,
    MAX_DIMENSIONS,
    MAX_RECORD_BYTES,
    check_schema,
)
from cloister.storage.records import Field, Schema, SplitName

MAX_MANIFEST_BYTES: Final = 1024 * 1024  # thousands of fields
SPLITS: Final[tuple[SplitName, ...]] = ("train", "held-out")
_MAX_NUMBER = 2**53  # which every JSON reader keeps exactly
# In base64, and with the rest of its envelope, it is within `MAX_MANIFEST_BYTES`.
_MAX_PAYLOAD_BYTES: Final = MAX_MANIFEST_BYTES * 3 // 4 - 1024

_MAX_SHOWN = 200  # characters of what is wrong

_Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]
_Word = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,31}\Z")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a sealed data set says of itself.

    Attributes:
        dataset_id: Random, made when it was sealed.
        schema: The fields of a record, with the bounds that their format has.
        train: Records of split ``train``.
        held_out: Records of split ``held-out``.
        key: Name of the data key (`keys.key_id`).
        owner: The party key that signed, ``ed25519:...``.
        source: The format it was made from.
    """

    dataset_id: bytes
    schema: Schema
    train: int
    held_out: int
    key: str
    owner: str
    source: str

    def records(self, split: SplitName) -> int:
        """Returns the number of records of a split."""
        return self.train if split == "train" else self.held_out

    @property
    def total(self) -> int:
        """Records of all splits."""
        return self.train + self.held_out


def check_describable(schema: Schema, *, source: str) -> None:
    """Checks, before anything is sealed, that a manifest can tell of it.

    Whatever the counts are that are found while records are sealed.

    Args:
        schema: The fields, checked (`record_layout.check_schema`).
        source: The source's format.

    Raises:
        StorageError: If the schema is too large to be written (``data-too-large``).
    """
    payload_of(
        Manifest(
            dataset_id=bytes(DATASET_ID_BYTES),
            schema=schema,
            train=_MAX_NUMBER,
            held_out=_MAX_NUMBER,
            key=f"sha256:{'0' * 64}",
            owner=f"ed25519:{'0' * 64}",
            source=source,
        )
    )


def payload_of(manifest: Manifest) -> bytes:
    """Returns a manifest as it is signed: JSON in its one spelling.

    Raises:
        StorageError: If the schema is too large to be written (``data-too-large``).
    """
    payload = msgspec.json.encode(_form_of(manifest))
    if len(payload) > _MAX_PAYLOAD_BYTES:
        raise StorageError(
            "the data set's manifest is too large to be written",
            code="data-too-large",
            expected=f"at most {_MAX_PAYLOAD_BYTES} bytes",
            got=str(len(payload)),
            remedy="Use fewer fields: one field can have many values.",
        )
    # What this program writes it also reads.
    parse_payload(payload)
    return payload


def parse_payload(payload: bytes) -> Manifest:
    """Returns the manifest that `payload_of` writes so; anybody may have written it.

    Raises:
        StorageError: If it is none (``data-malformed``).
    """
    try:
        form = msgspec.json.decode(payload, type=_Form)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise malformed(str(error)) from error
    except RecursionError as error:
        raise malformed("nested too deeply") from error
    if msgspec.json.encode(form) != payload:
        raise malformed("spelled in another way")
    schema = Schema(
        fields=tuple(
            Field(name=f.name, dtype=f.dtype, shape=f.shape, below=f.below)
            for f in form.schema
        )
    )
    try:
        check_schema(schema)
    except ConfigError as error:
        raise malformed(f"{error.what}: {error.got}") from error
    return Manifest(
        dataset_id=bytes.fromhex(form.id),
        schema=schema,
        train=form.splits.train,
        held_out=form.splits.held_out,
        key=form.key,
        owner=form.owner,
        source=form.source,
    )


def malformed(got: str) -> StorageError:
    """Returns the error for what is no manifest.

    Args:
        got: What came instead; parsers quote what anybody may have written.
    """
    shown = "".join(c if c.isprintable() else "?" for c in got[:_MAX_SHOWN])
    return StorageError(
        "this is no manifest of a sealed data set",
        code="data-malformed",
        expected="a manifest as `cloister data seal` writes it",
        got=shown,
        remedy="Copy the sealed data set again.",
    )


class _Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1]
    id: _Hex64
    schema: tuple[_FieldForm, ...]
    splits: _SplitsForm
    key: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    owner: Annotated[str, Meta(pattern=r"^ed25519:[0-9a-f]{64}\Z")]
    source: _Word


class _FieldForm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    dtype: Annotated[str, Meta(pattern=r"^[a-z]+[0-9]+\Z", max_length=16)]
    # Bounded before anything multiplies them.
    shape: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=MAX_RECORD_BYTES)], ...],
        Meta(max_length=MAX_DIMENSIONS),
    ]
    below: Annotated[int, Meta(ge=1, le=MAX_BOUND)] | None


class _SplitsForm(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    train: _Count
    held_out: _Count = msgspec.field(name="held-out")


def _form_of(manifest: Manifest) -> _Form:
    return _Form(
        format=1,
        id=manifest.dataset_id.hex(),
        schema=tuple(
            _FieldForm(name=f.name, dtype=f.dtype, shape=f.shape, below=f.below)
            for f in manifest.schema.fields
        ),
        splits=_SplitsForm(train=manifest.train, held_out=manifest.held_out),
        key=manifest.key,
        owner=manifest.owner,
        source=manifest.source,
    )
