"""An older copy of a custodian's database is put back, to get at a revoked key.

The keyring beside it is of today. All files are real; each story ends with what is in
them, and with what the custodian gives a node over its port.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import fresh_node
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_on_disk,
    database_of,
    keeper_of,
    keyring_of,
    kinds_recorded,
    office_of,
    token_of,
)
from tests.support.registers import forge
from tests.support.running import Run
from tests.support.stolen_registers import (
    PARTY,
    ask,
    data_key,
    revoke,
    steal,
)

from cloister.custody.keyring import Keyring, open_keyring
from cloister.custody.register import Register
from cloister.errors import PeerInTrouble, RefusedByPeer, StorageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


def check_sealed_for_ever(keyed: KeyedFederation, home: Path, older: Path) -> None:
    """Even who has today's keyring, open, and our code opens nothing of then."""
    ring = open_keyring(
        keyring_of(PARTY, home), party=PARTY, lock=token_of(PARTY, home)
    )
    with Register.open(database_of(PARTY, older)) as register:
        [row] = [it for it in register.kept_keys() if it.key_id == data_key(keyed)]
    assert row.sealed is not None
    for generation in (1, 2):
        for key in ring.keys.values():
            forged = Keyring(party=PARTY, keys={generation: key})
            with pytest.raises(StorageError) as caught:
                forged.unseal(
                    row.sealed,
                    kind="data",
                    key_id=data_key(keyed),
                    generation=generation,
                )
            assert caught.value.code == "key-damaged"


@pytest.mark.parametrize("forged", [False, True])
def test_the_register_of_before_a_revocation_is_put_back_while_no_custodian_runs(
    run: Run, keyed: KeyedFederation, tmp_path: Path, *, forged: bool
) -> None:
    """The host wants a revoked key back; it can also write what generation it is."""
    home = tmp_path / "home"

    async def story() -> Path:
        async with office_of(keyed, PARTY, home) as office:
            await ask(keyed, office, "data")
            older = steal(home, tmp_path / "older")
            revoke(keyed, office)
            with pytest.raises(RefusedByPeer) as caught:
                await ask(keyed, office, "data")
            assert caught.value.code == "key-revoked"
        return older

    older = run(story())
    shutil.copy2(database_of(PARTY, older), database_of(PARTY, home))
    if forged:
        forge(database_of(PARTY, home), lambda rows: rows.set_generation(2))
    before = keyring_of(PARTY, home).read_bytes()
    with pytest.raises(StorageError) as caught, keeper_of(keyed, PARTY, home):
        pass
    assert caught.value.code == ("key-damaged" if forged else "keyring-generation")
    check_sealed_for_ever(keyed, home, older)
    # No start of a custodian changes the keyring because of it.
    assert keyring_of(PARTY, home).read_bytes() == before
    check_no_key_on_disk(tmp_path, keyed.secrets.values())


def by_name(older: Path, home: Path, _: bytes) -> None:
    shutil.copy2(database_of(PARTY, older), home / "new")
    (home / "new").replace(database_of(PARTY, home))


def in_its_place(older: Path, home: Path, _: bytes) -> None:
    path = database_of(PARTY, home)
    path.write_bytes(database_of(PARTY, older).read_bytes())


def by_a_journal(_: Path, home: Path, journal: bytes) -> None:
    # SQLite rolls back whatever journal lies beside the file.
    path = database_of(PARTY, home)
    path.with_name(f"{path.name}-journal").write_bytes(journal)


def journal_of(database: Path) -> bytes:
    """Returns a journal that takes every page back to where it is now.

    Written as SQLite's file format says (section 3, the rollback journal).
    """
    content = database.read_bytes()
    size, nonce = 4096, 1
    pages = [content[at : at + size] for at in range(0, len(content), size)]
    magic = bytes.fromhex("d9d505f920a163d7")
    head = magic + struct.pack(">5I", len(pages), nonce, len(pages), 512, size)
    journal = head.ljust(512, b"\0")
    for number, page in enumerate(pages, 1):
        checksum = nonce + sum(page[at] for at in range(size - 200, 0, -200))
        journal += struct.pack(">I", number) + page + struct.pack(">I", checksum)
    return journal


@pytest.mark.parametrize(
    "put_back", [by_name, in_its_place, by_a_journal], ids=lambda it: it.__name__
)
def test_the_register_of_before_a_revocation_is_put_back_under_a_running_custodian(
    run: Run,
    keyed: KeyedFederation,
    tmp_path: Path,
    put_back: Callable[[Path, Path, bytes], None],
) -> None:
    home = tmp_path / "home"

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            node = fresh_node(keyed, PARTY)
            async with custodian_line(node, office.address) as line:
                await line.first_warrant(patience_seconds=0)
                older = steal(home, tmp_path / "older")
                journal = journal_of(database_of(PARTY, home))
                revoke(keyed, office)
                put_back(older, home, journal)
                for _ in range(2):
                    with pytest.raises(PeerInTrouble) as caught:
                        await line.keys(("data",), patience_seconds=0)
                    assert caught.value.code == "register-replaced"
            assert office.events("keys-released") == []
            assert set(office.refusals()) == {"register-replaced"}
        # Nor does it help to start it again.
        with pytest.raises(StorageError) as refused, keeper_of(keyed, PARTY, home):
            pass
        assert refused.value.code == "keyring-generation"

    run(story())
    with Register.open(database_of(PARTY, home)) as register:
        # What was put back is what it was: nothing was written to it.
        assert "key-revoked" not in [row.kind for row in register.records()]
        assert "key-released" not in [row.kind for row in register.records()]
    check_no_key_on_disk(tmp_path, keyed.secrets.values())


def test_all_of_it_put_back_with_the_keyring_of_its_time_is_not_noticed(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    # The limit, and no oversight: two files and what opens them are all that there is.
    home = tmp_path / "home"

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            older = steal(home, tmp_path / "older")
            revoke(keyed, office)
        for path in older.iterdir():
            shutil.copy2(path, home)
        async with office_of(keyed, PARTY, home) as office:
            assert await ask(keyed, office, "data") == keyed.secrets[PARTY, "data"]
            assert "key-revoked" not in kinds_recorded(office.custodian)
        check_no_key_on_disk(tmp_path, keyed.secrets.values())

    run(story())
