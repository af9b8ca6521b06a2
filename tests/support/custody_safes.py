"""Custodians whose keys lie sealed in their registers, and what must not lie beside."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.custodian_on_disk import CustodianOnDisk, custodian_on_disk
from tests.support.custody_keys import KeyedFederation
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import START, HandClock
from tests.support.keyrings import new_identity_file

from cloister.custody.custodian import Custodian
from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import IdentityFile, create_keyring
from cloister.storage.keys import Secret


def database_of(party: str, directory: Path) -> Path:
    """Returns where a party's register lies."""
    return directory / f"{party}.sqlite"


def keyring_of(party: str, directory: Path) -> Path:
    """Returns where a party's keyring lies."""
    return directory / f"{party}-keyring.age"


def token_of(party: str, directory: Path) -> IdentityFile:
    """Returns what opens a party's keyring; it lies elsewhere."""
    return IdentityFile(path=directory / "tokens" / f"{party}.txt")


@contextmanager
def keeper_of(
    keyed: KeyedFederation,
    party: str,
    directory: Path,
    *,
    clock: HandClock | None = None,
) -> Iterator[Custodian]:
    """Lends a party's custodian with its register, keyring and sealed keys on disk.

    The first time all are made; afterwards it is a custodian that was started again.
    """
    with custodian_of(keyed.federation, party, directory, clock=clock) as custodian:
        path, lock = keyring_of(party, directory), token_of(party, directory)
        new = not path.exists()
        if new:
            lock.path.parent.mkdir(exist_ok=True)
            new_identity_file(lock.path)
            create_keyring(path, party=party, lock=lock)
        keys = RegisterKeys.open(custodian.register, path=path, lock=lock)
        if new:
            for (owner, kind), secret in keyed.secrets.items():
                if owner == party:
                    keys.add(kind, label="main", at=START, secret=secret)
        yield replace(custodian, keys=keys)


@asynccontextmanager
async def office_of(
    keyed: KeyedFederation,
    party: str,
    directory: Path,
    *,
    clock: HandClock | None = None,
) -> AsyncIterator[CustodianOnDisk]:
    """Opens the port of a party's custodian, all of it on disk."""
    with keeper_of(keyed, party, directory, clock=clock) as custodian:
        async with custodian_on_disk(custodian, directory) as office:
            yield office


def kinds_recorded(custodian: Custodian) -> list[str]:
    """Returns the kinds of all records in a custodian's register, in order."""
    return [row.kind for row in custodian.register.records()]


def refusals_recorded(custodian: Custodian) -> list[str]:
    """Returns what a custodian's register says of those that it refused."""
    found = custodian.register.records()
    return [row.payload.decode() for row in found if row.kind == "node-refused"]


def check_no_key_in(text: bytes | str, secrets: Iterable[Secret]) -> None:
    """Checks that no key stands in a text, in none of the usual forms."""
    content = text.encode() if isinstance(text, str) else text
    for secret in secrets:
        for form in _forms(secret.reveal()):
            assert form not in content


def check_no_key_on_disk(directory: Path, secrets: Iterable[Secret]) -> None:
    """Checks that no key stands in any file of a directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    for path in files:
        check_no_key_in(path.read_bytes(), secrets)


def _forms(key: bytes) -> Iterator[bytes]:
    yield key
    yield key.hex().encode()
    yield key.hex().upper().encode()
    yield repr(key)[2:-1].encode()
    for coded in (base64.b64encode(key), base64.urlsafe_b64encode(key)):
        yield coded.rstrip(b"=")
