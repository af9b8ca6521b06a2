"""Alice's custodian, and what is done to the files in which its keys lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.custodian_on_disk import CustodianOnDisk
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import fresh_node
from tests.support.custody_keys import KeyedFederation
from tests.support.custody_safes import check_no_key_in, database_of, keyring_of
from tests.support.federation_in_memory import START

from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import Lock
from cloister.custody.register import Register
from cloister.errors import CloisterError
from cloister.storage.keys import KeyKind, Secret

PARTY = "alice"


def data_key(keyed: KeyedFederation) -> str:
    """Returns the name of alice's data key."""
    return str(keyed.plan.find_party(PARTY).data_key)


def share_of(keyed: KeyedFederation) -> str:
    """Returns the name of alice's share."""
    return str(keyed.plan.find_party(PARTY).state_share)


def steal(directory: Path, to: Path) -> Path:
    """Copies all that lies beside the register; what opens the keyring does not."""
    to.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            shutil.copy2(path, to)
    return to


def revoke(keyed: KeyedFederation, office: CustodianOnDisk) -> None:
    """Revokes alice's data key."""
    keys = office.custodian.keys
    assert isinstance(keys, RegisterKeys)
    keys.revoke(data_key(keyed), at=START)


async def ask(keyed: KeyedFederation, office: CustodianOnDisk, kind: KeyKind) -> Secret:
    """Returns what a new node of alice's gets."""
    node = fresh_node(keyed, PARTY)
    async with custodian_line(node, office.address) as line:
        await line.first_warrant(patience_seconds=0)
        return (await line.keys((kind,), patience_seconds=0))[kind]


def why_closed(directory: Path, lock: Lock, secrets: list[Secret]) -> str:
    """Returns why the keys in a directory do not open; it says nothing of them."""
    with pytest.raises(CloisterError) as caught:
        _open(directory, lock)
    check_no_key_in(f"{caught.value!r}{caught.value.__cause__!r}", secrets)
    return caught.value.code


def _open(directory: Path, lock: Lock) -> None:
    with Register.open(database_of(PARTY, directory)) as register:
        RegisterKeys.open(register, path=keyring_of(PARTY, directory), lock=lock)
