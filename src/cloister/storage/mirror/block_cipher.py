"""Encryption of a mirror's blocks and manifests (``docs/spec/mirror.md``).

AES-256-GCM (NIST SP 800-38D). Whoever opens a mirror draws a salt and derives a session
key of its own. Under it a nonce is the number of the save, which only rises, and the
block's number. So no nonce repeats, also when the host puts an older file back: what is
written then is under another key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Final, Literal

import cbor2
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.storage.keys import KEY_BYTES, Secret
from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.subject import Subject

# state: all arrays change at once (`state_mirror`). parts: some do (`parts_mirror`).
MirrorKind = Literal["state", "parts"]

TAG_BYTES: Final = 16
SALT_BYTES: Final = 32
LABEL: Final = "cloister/mirror/1"
_BLOCK_LABEL: Final = f"{LABEL} block"
_MANIFEST_LABEL: Final = f"{LABEL} manifest"
_MANIFEST_NUMBER: Final = 2**32 - 1  # in the nonce; no block has it


class SessionCipher:
    """Seals what one opening of a mirror writes, and opens what it wrote.

    Args:
        key: The node's state key.
        kind: Of the mirror.
        subject: Whose state it is.
        layout: Its arrays.
        salt: `SALT_BYTES`, drawn at that opening.
    """

    __slots__ = ("_aead", "_arrays", "_manifest", "salt")

    def __init__(
        self,
        key: Secret,
        *,
        kind: MirrorKind,
        subject: Subject,
        layout: ArrayLayout,
        salt: bytes,
    ) -> None:
        self.salt = salt
        whose = [kind, *form_of(subject)]
        self._aead = AESGCM(_derived(key, [f"{LABEL} session", *whose], salt=salt))
        # What every block of an array is bound to, written out once: an array in CBOR
        # is its items back to back behind their count.
        context = [_BLOCK_LABEL, *whose, layout.digest]
        self._arrays = [
            _array_of(len(context) + 6)
            + _items([*context, spec.name, list(spec.shape), spec.dtype])
            for spec in layout.arrays
        ]
        self._manifest = [_MANIFEST_LABEL, *whose, layout.digest]

    def context(self, array: int, *, completed: int, slot: int) -> bytes:
        """Returns what all blocks of an array are bound to in one state.

        Args:
            array: The array's number.
            completed: Rounds completed.
            slot: Where the state lies.
        """
        return self._arrays[array] + _items([completed, slot])

    def seal_block(
        self,
        content: memoryview,
        into: memoryview,
        *,
        save: int,
        number: int,
        context: bytes,
    ) -> None:
        """Writes a block's ciphertext and tag into `into`, `TAG_BYTES` longer.

        Args:
            content: The block.
            into: Memory of the node's own: a host that shares it could change what the
                tag is computed over.
            save: Number of the save, which this session uses once.
            number: The block's number.
            context: Of its array, as `context` returns it.
        """
        self._aead.encrypt_into(
            _nonce(save, number), content, context + _items([number]), into
        )

    def open_block(
        self,
        sealed: memoryview,
        into: memoryview,
        *,
        save: int,
        number: int,
        context: bytes,
    ) -> None:
        """Writes a block's plaintext into `into`.

        Args:
            sealed: Ciphertext and tag, in memory of the node's own.
            into: Of the block's length. It holds rubbish if this raises.
            save: As it was sealed.
            number: As it was sealed.
            context: As it was sealed.

        Raises:
            InvalidTag: If it is not the very block sealed so.
        """
        self._aead.decrypt_into(
            _nonce(save, number), sealed, context + _items([number]), into
        )

    def seal_manifest(self, manifest: bytes, *, save: int, slot: int) -> bytes:
        """Returns ciphertext and tag of a manifest: `TAG_BYTES` more."""
        bound = cbor2.dumps([*self._manifest, slot], canonical=True)
        return self._aead.encrypt(_nonce(save, _MANIFEST_NUMBER), manifest, bound)

    def open_manifest(self, sealed: bytes, *, save: int, slot: int) -> bytes:
        """Returns a manifest.

        Raises:
            InvalidTag: If it is not the very manifest sealed in that place.
        """
        bound = cbor2.dumps([*self._manifest, slot], canonical=True)
        return self._aead.decrypt(_nonce(save, _MANIFEST_NUMBER), sealed, bound)


def form_of(subject: Subject) -> list[str | bytes]:
    """Returns whose state it is, as it stands in everything that is sealed."""
    return [subject.run_id, subject.plan_hash, subject.role, subject.party]


def key_name(key: Secret, kind: MirrorKind) -> bytes:
    """Returns a public name of a state key, 16 bytes: it says nothing of the key."""
    return _derived(key, [f"{LABEL} key name", kind])[:16]


def header_tag(key: Secret, kind: MirrorKind, header: bytes) -> bytes:
    """Returns the tag of a mirror's header: HMAC-SHA256, 32 bytes."""
    return hmac.digest(_derived(key, [f"{LABEL} header", kind]), header, hashlib.sha256)


def _derived(
    key: Secret, info: Sequence[object], *, salt: bytes | None = None
) -> bytes:
    return HKDF(
        algorithm=SHA256(),
        length=KEY_BYTES,
        salt=salt,
        info=cbor2.dumps(info, canonical=True),
    ).derive(key.reveal())


def _nonce(save: int, number: int) -> bytes:
    """Returns 8 bytes of the save and 4 of the block, big endian."""
    return save.to_bytes(8, "big") + number.to_bytes(4, "big")


def _array_of(count: int) -> bytes:
    """Returns how an array of `count` items begins in CBOR (RFC 8949, 3.1)."""
    return bytes((0x80 | count,))


def _items(items: Sequence[object]) -> bytes:
    return b"".join(cbor2.dumps(item, canonical=True) for item in items)
