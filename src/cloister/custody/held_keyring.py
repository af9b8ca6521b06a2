"""The keyring that a custodian has open, and how it comes to its next generation.

A revoked key is gone: its sealed bytes are deleted, and all others are sealed anew
under the next generation, so that an older copy of the register does not open with the
keyring of today. That takes three steps, of which each may be the last before a crash:

1. the keyring on the disk gets the next generation beside the one in use;
2. the register is changed, in one transaction, and names the next generation;
3. the keyring on the disk keeps that one alone.

Between them either generation opens what the register holds. Whoever opens the store
next does step 3, or undoes step 1. The register's lock is held whenever the keyring is
written, so no two processes are at it at once.

To seal or open a keyring takes seconds with a passphrase, and a custodian that runs
waits for the register's lock. So that work is done without the lock; what was found or
assumed before is looked at again under it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cloister.custody.keyring import (
    Keyring,
    Lock,
    read_keyring,
    seal_keyring,
    unseal_keyring,
    write_keyring,
)
from cloister.custody.keyring_errors import other_generation
from cloister.custody.register import Register
from cloister.custody.register_tables import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class NextGeneration:
    """A generation on its way, sealed for each step.

    Attributes:
        before: The generation in use.
        ring: It, and the one after it.
        sealed: For the disk, in step 1.
        alone: The one after it.
        sealed_alone: For the disk, in step 3.
    """

    before: int
    ring: Keyring
    sealed: bytes = field(repr=False)
    alone: Keyring
    sealed_alone: bytes = field(repr=False)


class HeldKeyring:
    """An open keyring, beside other processes that revoke keys; made by `open`.

    Args:
        register: The party's register.
        path: The keyring's file.
        lock: What opens it; kept, for another process may revoke a key meanwhile.
        keyring: What is in it, of one generation: that of the register.
    """

    def __init__(
        self, register: Register, *, path: Path, lock: Lock, keyring: Keyring
    ) -> None:
        self._register = register
        self._path = path
        self._lock = lock
        # Of one generation, always. What else lies in the file is on its way, and may
        # be what a crash left and another process replaces.
        self._keyring = keyring

    @classmethod
    def open(cls, register: Register, *, path: Path, lock: Lock) -> Self:
        """Returns the keyring of a register; finishes, or undoes, after a crash.

        Raises:
            ConfigError: If `lock` does not open it.
            StorageError: If it is missing, exposed, damaged, another party's, or of
                another time than the register.
        """
        with register.transaction() as rows:
            generation, sealed = rows.head.generation, read_keyring(path)
        keyring = unseal_keyring(sealed, path=path, party=register.party, lock=lock)
        own = _only(keyring, generation, path=path)
        held = cls(register, path=path, lock=lock, keyring=own)
        if keyring != own:
            held._settle(sealed)
        return held

    def catch_up(self) -> None:
        """Opens it again if another process revoked a key since; without the lock."""
        with self._register.transaction() as rows:
            generation = rows.head.generation
            if generation in self._keyring.keys:
                return
            sealed = read_keyring(self._path)
        self._keyring = self._opened(sealed, generation)

    def current(self, rows: Rows) -> Keyring:
        """Returns the keyring that opens what the register holds now."""
        generation = rows.head.generation
        if generation not in self._keyring.keys:
            # Since `catch_up`: others wait, this once.
            self._keyring = self._opened(read_keyring(self._path), generation)
        return self._keyring

    def next_generation(self) -> NextGeneration:
        """Returns the generation after the one in use, sealed; nothing is written."""
        self.catch_up()
        keyring = self._keyring
        (before,) = keyring.keys
        ring = keyring.and_next(before)
        alone = ring.only(before + 1)
        return NextGeneration(
            before=before,
            ring=ring,
            sealed=seal_keyring(ring, lock=self._lock),
            alone=alone,
            sealed_alone=seal_keyring(alone, lock=self._lock),
        )

    def begin(self, coming: NextGeneration) -> None:
        """Step 1, inside the transaction of step 2, in which `before` is in use."""
        write_keyring(self._path, coming.sealed)

    def finish(self, coming: NextGeneration) -> None:
        """Step 3, after the transaction of step 2."""
        self._keyring = coming.alone
        with self._register.transaction() as rows:
            # Unless another process is further by now.
            if rows.head.generation == coming.before + 1:
                write_keyring(self._path, coming.sealed_alone)

    def _settle(self, found: bytes) -> None:
        """Has the keyring on the disk keep the register's generation alone."""
        sealed = seal_keyring(self._keyring, lock=self._lock)
        with self._register.transaction() as rows:
            # Unless another process did it, or revokes a key, since it was read.
            same = read_keyring(self._path) == found
            if same and rows.head.generation in self._keyring.keys:
                write_keyring(self._path, sealed)

    def _opened(self, sealed: bytes, generation: int) -> Keyring:
        keyring = unseal_keyring(
            sealed, path=self._path, party=self._register.party, lock=self._lock
        )
        return _only(keyring, generation, path=self._path)


def _only(keyring: Keyring, generation: int, *, path: Path) -> Keyring:
    if generation not in keyring.keys:
        raise other_generation(path, register=generation, keyring=max(keyring.keys))
    return keyring.only(generation)
