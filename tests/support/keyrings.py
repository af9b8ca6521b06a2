"""A custodian's register with a keyring beside it, on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.registers import PARTY

from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import IdentityFile, create_keyring
from cloister.custody.register import Register
from cloister.storage.age import new_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Safe:
    """Where a register, its keyring and the identity that opens it lie."""

    directory: Path

    @property
    def database(self) -> Path:
        return self.directory / "custodian.sqlite"

    @property
    def keyring(self) -> Path:
        return self.directory / "keyring.age"

    @property
    def identity(self) -> Path:
        return self.directory / "identity.txt"

    @property
    def lock(self) -> IdentityFile:
        return IdentityFile(path=self.identity)

    def keys(self, register: Register) -> RegisterKeys:
        return RegisterKeys.open(register, path=self.keyring, lock=self.lock)


def new_safe(directory: Path, *, party: str = PARTY) -> Safe:
    """Makes all three in a directory."""
    safe = Safe(directory=directory)
    new_identity_file(safe.identity)
    create_keyring(safe.keyring, party=party, lock=safe.lock)
    Register.create(safe.database, party=party).close()
    return safe


def new_identity_file(path: Path) -> Path:
    """Writes a fresh age identity, its owner's alone."""
    path.touch(mode=0o600)
    path.write_text(f"# an identity\n{new_identity()[0]}\n")
    return path
