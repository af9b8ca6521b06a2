"""States in the slots of a ring, sealed: written, found and filled back into arrays.

Form: ``docs/spec/mirror.md``. A slot is the arrays' ciphertext, each byte at its
plaintext's own offset, then the manifest with all tags.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.array_layout import Arrays, Block, Bytes
from cloister.storage.mirror.block_cipher import (
    SALT_BYTES,
    TAG_BYTES,
    SessionCipher,
)
from cloister.storage.mirror.block_work import BlockWork
from cloister.storage.mirror.manifest import Bound, Manifest, salt_of, seal, unseal
from cloister.storage.mirror.refusals import damaged
from cloister.storage.mirror.region import whole_pages
from cloister.storage.mirror.slots import SlotRing


def slot_bytes(bound: Bound) -> int:
    """Returns the size of a slot for such states."""
    return _arrays_bytes(bound) + bound.room


class SealedSlots:
    """The states in one ring.

    Args:
        ring: The slots, of `slot_bytes` each.
        path: The file, for messages.
        key: The node's state key.
        bound: What every state in it is bound to.
        work: Does the work on blocks.
    """

    def __init__(
        self, ring: SlotRing, *, path: Path, key: Secret, bound: Bound, work: BlockWork
    ) -> None:
        self._ring = ring
        self._path = path
        self._key = key
        self._bound = bound
        self._work = work
        self._session = self._cipher(secrets.token_bytes(SALT_BYTES))
        self._saves = 0

    def find(self, slot: int, *, sequence: int) -> Manifest:
        """Returns the manifest of a state.

        Args:
            slot: Where it lies.
            sequence: Its place among all states that the mirror had.

        Raises:
            StorageError: If there is no such state (``mirror-damaged``).
        """
        lying = bytearray(self._bound.room)
        self._ring.read_into(slot, _arrays_bytes(self._bound), memoryview(lying))
        cipher = self._cipher(salt_of(bytes(lying)))
        try:
            manifest = unseal(bytes(lying), self._bound, cipher, slot=slot)
        except InvalidTag as error:
            raise damaged(self._path, f"the manifest in slot {slot}") from error
        if manifest.sequence != sequence:
            raise damaged(self._path, f"slot {slot} holds a state of another time")
        return manifest

    def write(
        self, arrays: Arrays, *, completed: int, counters: Mapping[str, int]
    ) -> Manifest:
        """Seals a state into the slot that follows, and returns its manifest.

        Raises:
            StorageError: If it cannot be written.
            RuntimeError: If the arrays do not fit.
        """
        layout = self._bound.layout
        content = [a.data for a in layout.bytes_of(arrays)]
        # Used up from here on, whatever becomes of this save: a nonce is never used
        # for two plaintexts.
        self._saves += 1
        save, slot = self._saves, self._ring.following
        session = self._session
        contexts = [
            session.context(number, completed=completed, slot=slot)
            for number in range(len(content))
        ]
        tags = np.empty((len(layout.blocks), TAG_BYTES), np.uint8)

        def seal_one(block: Block, memory: memoryview) -> None:
            size = block.size_bytes
            session.seal_block(
                content[block.array][block.start : block.start + size],
                memory[: size + TAG_BYTES],
                save=save,
                number=block.number,
                context=contexts[block.array],
            )
            self._ring.write(block.offset, memory[:size])
            tags[block.number] = memory[size : size + TAG_BYTES]

        self._work.each(layout.blocks, seal_one)
        manifest = Manifest(
            slot=slot,
            sequence=self._ring.sequence + 1,
            completed=completed,
            counters=counters,
            salt=session.salt,
            save=save,
            saves=b"",
            tags=tags.tobytes(),
        )
        sealed = seal(manifest, self._bound, session, room=self._bound.room)
        self._ring.write(_arrays_bytes(self._bound), sealed)
        return manifest

    def restore(self, manifest: Manifest, into: Arrays) -> None:
        """Fills arrays with a state.

        Raises:
            StorageError: If any of it is not what was sealed (``mirror-damaged``), or
                cannot be read; all of `into` is zeros then.
            RuntimeError: If the arrays do not fit.
        """
        layout = self._bound.layout
        places = layout.bytes_of(into)
        if not all(place.flags.writeable for place in places):
            raise RuntimeError("a state cannot be restored into constant arrays")
        views = [place.data for place in places]
        cipher = self._cipher(manifest.salt)
        contexts = [
            cipher.context(number, completed=manifest.completed, slot=manifest.slot)
            for number in range(len(views))
        ]

        def open_one(block: Block, memory: memoryview) -> None:
            size, tag = block.size_bytes, block.number * TAG_BYTES
            # Copied first: what is verified is then what is decrypted, whatever a host
            # does to the medium meanwhile.
            self._ring.read_into(manifest.slot, block.offset, memory[:size])
            memory[size : size + TAG_BYTES] = manifest.tags[tag : tag + TAG_BYTES]
            cipher.open_block(
                memory[: size + TAG_BYTES],
                views[block.array][block.start : block.start + size],
                save=manifest.save,
                number=block.number,
                context=contexts[block.array],
            )

        try:
            self._work.each(layout.blocks, open_one)
        except InvalidTag as error:
            _forget(places)
            name = "one of its blocks"
            raise damaged(self._path, name) from error
        except StorageError:
            _forget(places)
            raise

    def _cipher(self, salt: bytes) -> SessionCipher:
        return SessionCipher(
            self._key,
            kind=self._bound.kind,
            subject=self._bound.subject,
            layout=self._bound.layout,
            salt=salt,
        )


def _arrays_bytes(bound: Bound) -> int:
    return whole_pages(bound.layout.size_bytes)


def _forget(places: Sequence[Bytes]) -> None:
    """The library decrypts before it compares the tag: nothing of it is kept."""
    for place in places:
        place[:] = 0
