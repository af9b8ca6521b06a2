"""The manifest of one state in a mirror: its round, its counters, every block's tag.

Form: ``docs/spec/mirror.md``. It is sealed like a block. Its hash is the state's
digest: tags and salt are in it, so the hash stands for every byte of the state. It has
one size whatever it says, so that a host does not see numbers grow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cbor2
from cryptography.exceptions import InvalidTag

from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.block_cipher import (
    LABEL,
    SALT_BYTES,
    TAG_BYTES,
    MirrorKind,
    SessionCipher,
    form_of,
)
from cloister.storage.mirror.subject import Subject

MAX_COUNTERS: Final = 64
MAX_COUNTER_NAME: Final = 48  # characters, ASCII
SAVE_BYTES: Final = 8
_MAX_COUNT: Final = 2**64 - 1
_LENGTH_BYTES: Final = 4
_ROOM_STEP: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What every manifest of one mirror is bound to.

    Attributes:
        kind: Of the mirror.
        subject: Whose state it is.
        layout: Its arrays.
    """

    kind: MirrorKind
    subject: Subject
    layout: ArrayLayout

    @property
    def room(self) -> int:
        """Bytes that a sealed manifest takes on the medium."""
        counters = {f"{n:0{MAX_COUNTER_NAME}}": _MAX_COUNT for n in range(MAX_COUNTERS)}
        blocks = len(self.layout.blocks)
        largest = Manifest(
            slot=2**32,
            sequence=_MAX_COUNT,
            completed=_MAX_COUNT,
            counters=counters if self.kind == "state" else {},
            salt=bytes(SALT_BYTES),
            save=_MAX_COUNT,
            saves=bytes(SAVE_BYTES * blocks if self.kind == "parts" else 0),
            tags=bytes(TAG_BYTES * blocks),
        )
        least = len(encode(largest, self)) + _LENGTH_BYTES + _OUTSIDE_BYTES
        return -(-least // _ROOM_STEP) * _ROOM_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What one state is.

    Attributes:
        slot: Where it lies.
        sequence: How many states the mirror had with it; 0 for parts, which have one.
        completed: Rounds completed.
        counters: What else is counted.
        salt: Of the session that sealed it.
        save: Number of the save in that session.
        saves: For parts, the number of the save that wrote each block, 8 bytes each,
            big endian; of a state all are `save`, and this is empty.
        tags: Of each block, `TAG_BYTES` each.
    """

    slot: int
    sequence: int
    completed: int
    counters: Mapping[str, int]
    salt: bytes
    save: int
    saves: bytes
    tags: bytes


# In the clear: what derives the session's key, and the save's part of the nonce.
_OUTSIDE_BYTES: Final = SALT_BYTES + SAVE_BYTES + TAG_BYTES


def checked_counters(counters: Mapping[str, int]) -> Mapping[str, int]:
    """Returns a copy of what is counted that nobody changes.

    Raises:
        RuntimeError: If a manifest has no room for it; a bug of the caller.
    """
    for name, value in counters.items():
        if not (name.isascii() and 1 <= len(name) <= MAX_COUNTER_NAME):
            raise RuntimeError("a counter of a state has no short plain name")
        if not 0 <= value <= _MAX_COUNT:
            raise RuntimeError(f"the counter {name} is no number of 64 bits")
    if len(counters) > MAX_COUNTERS:
        raise RuntimeError(f"a state has at most {MAX_COUNTERS} counters")
    return MappingProxyType(dict(counters))


def encode(manifest: Manifest, bound: Bound) -> bytes:
    """Returns a manifest in its one spelling, canonical CBOR (RFC 8949, 4.2)."""
    form = [
        f"{LABEL} manifest",
        bound.kind,
        form_of(bound.subject),
        bound.layout.digest,
        manifest.slot,
        manifest.sequence,
        manifest.completed,
        dict(manifest.counters),
        manifest.salt,
        manifest.save,
        manifest.saves,
        manifest.tags,
    ]
    return cbor2.dumps(form, canonical=True)


def digest_of(manifest: Manifest, bound: Bound) -> bytes:
    """Returns the state's digest: SHA-256 of the manifest, 32 bytes."""
    return hashlib.sha256(encode(manifest, bound)).digest()


def seal(
    manifest: Manifest, bound: Bound, cipher: SessionCipher, *, room: int
) -> bytes:
    """Returns a manifest as it lies on the medium: `room` bytes."""
    content = encode(manifest, bound)
    plain = len(content).to_bytes(_LENGTH_BYTES, "big") + content
    padded = plain.ljust(room - _OUTSIDE_BYTES, b"\0")
    sealed = cipher.seal_manifest(padded, save=manifest.save, slot=manifest.slot)
    return manifest.salt + manifest.save.to_bytes(SAVE_BYTES, "big") + sealed


def salt_of(lying: bytes) -> bytes:
    """Returns the salt of the session that wrote what lies there."""
    return lying[:SALT_BYTES]


def unseal(lying: bytes, bound: Bound, cipher: SessionCipher, *, slot: int) -> Manifest:
    """Returns the manifest that `seal` wrote so.

    Args:
        lying: What lies on the medium.
        bound: What it must be bound to.
        cipher: Of the session that wrote it.
        slot: Where it lies.

    Raises:
        InvalidTag: If it is not what was sealed there.
    """
    save = int.from_bytes(lying[SALT_BYTES : SALT_BYTES + SAVE_BYTES], "big")
    sealed = lying[SALT_BYTES + SAVE_BYTES :]
    plain = cipher.open_manifest(sealed, save=save, slot=slot)
    length = int.from_bytes(plain[:_LENGTH_BYTES], "big")
    content = plain[_LENGTH_BYTES : _LENGTH_BYTES + length]
    manifest = _parsed(content)
    # It is authentic. That it says what it is bound to anyway is for the digest's sake:
    # a digest stands for one state of one mirror, whoever has the key.
    blocks = len(bound.layout.blocks)
    if (
        (manifest.save, manifest.salt, manifest.slot) != (save, cipher.salt, slot)
        or len(manifest.tags) != TAG_BYTES * blocks
        or len(manifest.saves) not in {0, SAVE_BYTES * blocks}
        or encode(manifest, bound) != content
    ):
        raise InvalidTag
    return manifest


def _parsed(content: bytes) -> Manifest:
    try:
        form = cbor2.loads(content)
        # Indices, then types: what is no manifest ends in one of these errors.
        slot, sequence, completed, counters, salt, save, saves, tags = form[4:]
        for number in (slot, sequence, completed, save):
            number.to_bytes(SAVE_BYTES, "big")
        return Manifest(
            slot=slot,
            sequence=sequence,
            completed=completed,
            counters=checked_counters(counters),
            salt=bytes.join(b"", [salt]),
            save=save,
            saves=bytes.join(b"", [saves]),
            tags=bytes.join(b"", [tags]),
        )
    except (
        cbor2.CBORDecodeError,
        AttributeError,
        LookupError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise InvalidTag from error
