"""The manifest of a sealed data set: what is in it, and whose signature says so.

Form: ``docs/spec/sealed-data.md``. It lies in the clear, for hosts and auditors may
know how many records of which shape a party has; it holds nothing that follows from
their values but the bounds of integer fields. Its digest stands in the plan.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from cloister.errors import ConfigError, StorageError
from cloister.storage.dsse import Envelope, encode_envelope, pae, parse_envelope
from cloister.storage.record_cipher import DATASET_ID_BYTES
from cloister.storage.record_layout import check_schema
from cloister.storage.records import Field, Schema, SplitName

PAYLOAD_TYPE: Final = "application/vnd.cloister.data.v1+json"
MAX_MANIFEST_BYTES: Final = 1024 * 1024  # thousands of fields
SPLITS: Final[tuple[SplitName, ...]] = ("train", "held-out")
MAX_BOUND: Final = 2**63 - 1  # what JSON readers take for an integer
_MAX_NUMBER = 2**53  # which every JSON reader keeps exactly
_MAX_RECORD_BYTES = 2**30

_Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]
_Word = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,31}\Z")]


class ManifestSigner(Protocol):
    """The owner's key."""

    @property
    def owner(self) -> str:
        """Its public half, ``ed25519:`` and 64 hex digits."""
        ...

    def sign(self, message: bytes, /) -> bytes:
        """Returns an Ed25519 signature over `message`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a sealed data set says of itself.

    Attributes:
        dataset_id: Random, made when it was sealed.
        schema: The fields of a record; every integer field has a bound where its
            values allow one.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedManifest:
    """A manifest whose signature holds, under the key that it names itself.

    Whose key that is says the plan: compare `digest` with what the plan pins.

    Attributes:
        manifest: What was signed.
        digest: ``sha256:`` and 64 hex digits over what is signed; the plan's ``data``.
    """

    manifest: Manifest
    digest: str


def sign_manifest(manifest: Manifest, *, signer: ManifestSigner) -> bytes:
    """Returns the signed manifest, one line of JSON without a newline.

    Raises:
        StorageError: If the schema is too large to be written (``data-too-large``).
        RuntimeError: If `signer` is not the manifest's owner; a bug of the caller.
    """
    if signer.owner != manifest.owner:
        raise RuntimeError("a manifest is signed by the owner that it names")
    payload = msgspec.json.encode(_form_of(manifest))
    _parse_payload(payload)
    signature = signer.sign(pae(payload, payload_type=PAYLOAD_TYPE))
    line = encode_envelope(
        Envelope(
            payload=payload,
            payload_type=PAYLOAD_TYPE,
            keyid=manifest.owner,
            signature=signature,
        )
    )
    if len(line) > MAX_MANIFEST_BYTES:
        raise StorageError(
            "the data set's manifest is too large to be written",
            code="data-too-large",
            expected=f"at most {MAX_MANIFEST_BYTES} bytes",
            got=str(len(line)),
            remedy="Use fewer fields: one field can have many values.",
        )
    return line


def verify_manifest(unverified: bytes) -> SignedManifest:
    """Returns the manifest on one line, if what it names as its owner signed it.

    1. It is one envelope of a manifest, spelled as `sign_manifest` does.
    2. The envelope names the owner's key.
    3. The signature over it is that key's.

    Left to the caller: whether that is the right owner, and the right data set.

    Raises:
        StorageError: If it is none (``data-malformed``), or its signature does not
            hold (``data-signature``).
    """
    # Step 1
    try:
        envelope = parse_envelope(unverified)
    except StorageError as error:
        raise _malformed(error.got) from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise _malformed(f"payload type {envelope.payload_type}")
    manifest = _parse_payload(envelope.payload)
    # Step 2
    if envelope.keyid != manifest.owner:
        raise _forged("an envelope of another key")
    # Step 3
    key = Ed25519PublicKey.from_public_bytes(
        bytes.fromhex(manifest.owner.removeprefix("ed25519:"))
    )
    try:
        key.verify(envelope.signature, envelope.signed)
    except InvalidSignature as error:
        raise _forged("a signature that does not hold") from error
    digest = hashlib.sha256(envelope.signed).hexdigest()
    return SignedManifest(manifest=manifest, digest=f"sha256:{digest}")


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
    shape: tuple[Annotated[int, Meta(ge=1, le=_MAX_RECORD_BYTES)], ...]
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


def _parse_payload(payload: bytes) -> Manifest:
    try:
        form = msgspec.json.decode(payload, type=_Form)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(str(error)) from error
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    if msgspec.json.encode(form) != payload:
        raise _malformed("spelled in another way")
    schema = Schema(
        fields=tuple(
            Field(name=f.name, dtype=f.dtype, shape=f.shape, below=f.below)
            for f in form.schema
        )
    )
    try:
        check_schema(schema)
    except ConfigError as error:
        raise _malformed(f"{error.what}: {error.got}") from error
    # Products of shapes are Python's integers and do not overflow.
    if schema.record_bytes > _MAX_RECORD_BYTES:
        raise _malformed(f"records of {schema.record_bytes} bytes")
    dataset_id = bytes.fromhex(form.id)
    if len(dataset_id) != DATASET_ID_BYTES:
        raise RuntimeError("the pattern gives its length")
    return Manifest(
        dataset_id=dataset_id,
        schema=schema,
        train=form.splits.train,
        held_out=form.splits.held_out,
        key=form.key,
        owner=form.owner,
        source=form.source,
    )


def _malformed(got: str) -> StorageError:
    return StorageError(
        "this is no manifest of a sealed data set",
        code="data-malformed",
        expected="a manifest as `cloister data seal` writes it",
        got=got,
        remedy="Copy the sealed data set again.",
    )


def _forged(got: str) -> StorageError:
    return StorageError(
        "the data set's manifest is not signed by the owner that it names",
        code="data-signature",
        expected="the owner's signature",
        got=got,
        remedy="Copy the sealed data set again; if that does not help, do not use it.",
    )
