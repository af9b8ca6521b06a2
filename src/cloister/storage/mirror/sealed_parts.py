"""The blocks of a parts mirror in a twin region, sealed: written, and read back.

Form: ``docs/spec/mirror.md``. Each block's ciphertext lies at its plaintext's own
offset; behind them all is the manifest, with each block's tag and the number of the
save that wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag

from cloister.storage.keys import Secret
from cloister.storage.mirror.array_layout import Bytes
from cloister.storage.mirror.block_cipher import (
    TAG_BYTES,
    SessionCipher,
)
from cloister.storage.mirror.manifest import (
    SAVE_BYTES,
    Bound,
    Manifest,
    salt_of,
    seal,
    unseal,
)
from cloister.storage.mirror.refusals import damaged
from cloister.storage.mirror.region import whole_pages
from cloister.storage.mirror.twin import TwinRegion

_SLOT: Final = 0  # there is one state; its twin is no place of its own


def parts_bytes(bound: Bound) -> int:
    """Returns how much a twin region must hold for such arrays."""
    return whole_pages(bound.layout.size_bytes) + bound.room


class SealedParts:
    """The blocks of one twin region.

    Args:
        twin: Of `parts_bytes`.
        path: The file, for messages.
        key: The node's state key.
        bound: What every manifest in it is bound to.
        salt: Of the session that begins.

    Attributes:
        bound: As given.
    """

    def __init__(
        self, twin: TwinRegion, *, path: Path, key: Secret, bound: Bound, salt: bytes
    ) -> None:
        self.bound = bound
        self._twin = twin
        self._path = path
        self._key = key
        self._session = self._cipher(salt)
        self._save = 0
        self._begun = False
        blocks = len(bound.layout.blocks)
        self._tags = np.zeros((blocks, TAG_BYTES), np.uint8)
        self._saves = np.zeros(blocks, f">u{SAVE_BYTES}")
        self._memory = memoryview(bytearray(bound.layout.block_bytes + TAG_BYTES))
        self._manifest_at = whole_pages(bound.layout.size_bytes)

    def write(self, values: Sequence[Bytes], touched: Sequence[int]) -> None:
        """Seals the blocks that were touched, and the manifest, in one transaction.

        The first time all blocks are: a manifest tells of one session's.

        Args:
            values: All arrays' bytes.
            touched: Numbers of blocks.

        Raises:
            StorageError: If the medium fails.
        """
        blocks = self.bound.layout.blocks
        numbers = touched if self._begun else range(len(blocks))
        # Used up from here on, whatever becomes of this save: a nonce is never used
        # for two plaintexts.
        self._save += 1
        tags, saves = self._tags.copy(), self._saves.copy()
        saves[numbers] = self._save
        with self._twin.transaction() as transaction:
            for number in numbers:
                block = blocks[number]
                size = block.size_bytes
                self._session.seal_block(
                    values[block.array].data[block.start : block.start + size],
                    self._memory[: size + TAG_BYTES],
                    save=self._save,
                    number=number,
                    context=self._session.context(block.array, completed=0, slot=_SLOT),
                )
                transaction.write(block.offset, self._memory[:size])
                tags[number] = self._memory[size : size + TAG_BYTES]
            manifest = Manifest(
                slot=_SLOT,
                sequence=0,
                completed=0,
                counters={},
                salt=self._session.salt,
                save=self._save,
                saves=saves.tobytes(),
                tags=tags.tobytes(),
            )
            sealed = seal(manifest, self.bound, self._session, room=self.bound.room)
            transaction.write(self._manifest_at, sealed)
        self._tags, self._saves, self._begun = tags, saves, True

    def restore(self, into: Sequence[Bytes]) -> None:
        """Fills arrays with what lies there.

        Args:
            into: All arrays' bytes. They must not be used if this raises.

        Raises:
            StorageError: If any of it is not what was sealed (``mirror-damaged``).
        """
        lying = bytearray(self.bound.room)
        self._twin.read_into(self._manifest_at, memoryview(lying))
        cipher = self._cipher(salt_of(bytes(lying)))
        try:
            manifest = unseal(bytes(lying), self.bound, cipher, slot=_SLOT)
        except InvalidTag as error:
            raise damaged(self._path, "its manifest") from error
        saves = np.frombuffer(manifest.saves, self._saves.dtype)
        for block in self.bound.layout.blocks:
            size, tag = block.size_bytes, block.number * TAG_BYTES
            self._twin.read_into(block.offset, self._memory[:size])
            self._memory[size : size + TAG_BYTES] = manifest.tags[tag : tag + TAG_BYTES]
            try:
                cipher.open_block(
                    self._memory[: size + TAG_BYTES],
                    into[block.array].data[block.start : block.start + size],
                    save=int(saves[block.number]),
                    number=block.number,
                    context=cipher.context(block.array, completed=0, slot=_SLOT),
                )
            except InvalidTag as error:
                name = self.bound.layout.arrays[block.array].name
                raise damaged(self._path, f"a block of {name}") from error

    def _cipher(self, salt: bytes) -> SessionCipher:
        return SessionCipher(
            self._key,
            kind=self.bound.kind,
            subject=self.bound.subject,
            layout=self.bound.layout,
            salt=salt,
        )
