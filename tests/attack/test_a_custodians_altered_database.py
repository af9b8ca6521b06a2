"""Somebody who can write to a custodian's disk changes what its keys are sealed in.

Hashes of rows have no key: whoever writes a row can write its hash anew. What holds is
the seal. All files are real; each story ends with what is in them, and with what the
custodian gives a node over its port.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_in,
    check_no_key_on_disk,
    database_of,
    keeper_of,
    keyring_of,
    kinds_recorded,
    office_of,
    token_of,
)
from tests.support.registers import forge, raw
from tests.support.running import Run
from tests.support.stolen_registers import (
    PARTY,
    ask,
    data_key,
    share_of,
    steal,
    why_closed,
)

from cloister.custody.key_store import RegisterKeys
from cloister.custody.register import Register
from cloister.custody.register_rows import KeyRow
from cloister.custody.register_tables import Rows
from cloister.errors import CloisterError, PeerInTrouble, StorageError
from cloister.storage.keys import KeyKind

PAGE_BYTES = 4096
REFUSED = {"register-damaged", "register-foreign"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


@pytest.fixture
def home(keyed: KeyedFederation, tmp_path: Path) -> Iterator[Path]:
    """Alice's custodian with its keys; no key is in any file when a story is over."""
    home = tmp_path / "home"
    with keeper_of(keyed, PARTY, home):
        pass
    yield home
    check_no_key_on_disk(tmp_path, keyed.secrets.values())


def rows_of(rows: Rows, *names: str) -> list[KeyRow]:
    found = {row.key_id: row for row in rows.kept_keys()}
    return [found[name] for name in names]


def replace_sealed(name: str, sealed: bytes, rows: Rows) -> None:
    [row] = rows_of(rows, name)
    changed = dataclasses.replace(row, sealed=sealed)
    rows.put(changed, instead_of=row, at=row.at)


def swap(first: str, second: str, rows: Rows) -> None:
    one, other = rows_of(rows, first, second)
    for row, by in ((one, other), (other, one)):
        changed = dataclasses.replace(row, sealed=by.sealed)
        rows.put(changed, instead_of=row, at=row.at)


def rename(name: str, rows: Rows) -> None:
    """Has a data key of another name be what the plan calls alice's."""
    [row] = rows_of(rows, name)
    # The very bytes under another kind, which is released to other nodes.
    changed = dataclasses.replace(row, kind="state-share", label="second")
    rows.put(changed, instead_of=row, at=row.at)


def sealed_of(home: Path, name: str) -> bytes:
    with Register.open(database_of(PARTY, home)) as register:
        [row] = [it for it in register.kept_keys() if it.key_id == name]
    assert row.sealed is not None
    return row.sealed


# Cut off


def test_a_database_is_cut_off_anywhere(
    run: Run, keyed: KeyedFederation, home: Path
) -> None:
    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            await ask(keyed, office, "data")

    run(story())
    path = database_of(PARTY, home)
    whole = path.read_bytes()
    at_pages = set(range(0, len(whole), PAGE_BYTES))
    beside = {at + by for at in at_pages for by in (-1, 1, 100, 2048)}
    for length in sorted({*at_pages, *beside, *range(0, 128, 7)}):
        if not 0 <= length < len(whole):
            continue
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError) as caught:
            Register.open(path)
        assert caught.value.code in REFUSED
        # It is looked at and left as it is.
        assert path.read_bytes() == whole[:length]
        assert not path.with_name(f"{path.name}-journal").exists()
    with pytest.raises(StorageError), keeper_of(keyed, PARTY, home):
        pass
    path.write_bytes(whole)
    with keeper_of(keyed, PARTY, home) as custodian:
        assert kinds_recorded(custodian).count("key-released") == 1


# Bits


def test_a_bit_of_a_sealed_key_is_flipped_by_one_who_makes_the_hashes_anew(
    keyed: KeyedFederation, home: Path
) -> None:
    name, path = data_key(keyed), database_of(PARTY, home)
    sealed, lock = sealed_of(home, name), token_of(PARTY, home)
    with Register.open(path) as register:
        keys = RegisterKeys.open(register, path=keyring_of(PARTY, home), lock=lock)
        for place in range(len(sealed)):
            changed = bytearray(sealed)
            changed[place] ^= 1 << place % 8
            forge(path, partial(replace_sealed, name, bytes(changed)))
            with pytest.raises(StorageError) as caught:
                keys.secret(name, kind="data")
            assert caught.value.code == "key-damaged"
            check_no_key_in(repr(caught.value), keyed.secrets.values())
        # Nor does a short one, or none at all, make a short key or none.
        for short in (b"", sealed[:12], sealed[:28], sealed[:-1], sealed + b"\0"):
            forge(path, partial(replace_sealed, name, short))
            with pytest.raises(StorageError):
                keys.secret(name, kind="data")
        assert (
            keys.secret(share_of(keyed), kind="state-share")
            == (keyed.secrets[PARTY, "state-share"])
        )
    assert why_closed(home, lock, list(keyed.secrets.values())) == "key-damaged"


def test_a_bit_of_a_sealed_key_is_flipped_by_one_who_does_not(
    run: Run, keyed: KeyedFederation, home: Path
) -> None:
    sealed, path = sealed_of(home, data_key(keyed)), database_of(PARTY, home)
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            with raw(path) as connection:
                connection.execute(
                    "UPDATE keys SET sealed = ? WHERE key_id = ?",
                    (changed, data_key(keyed)),
                )
            with pytest.raises(PeerInTrouble) as caught:
                await ask(keyed, office, "data")
            assert caught.value.code == "register-damaged"
            assert office.events("keys-released") == []

    run(story())
    with pytest.raises(StorageError) as caught:
        Register.open(path)
    assert caught.value.code == "register-damaged"


def test_a_bit_of_the_keyring_is_flipped_under_a_running_custodian(
    run: Run, keyed: KeyedFederation, home: Path
) -> None:
    """What runs goes on, and no start is fooled; the party puts the file back."""
    ring, lock = keyring_of(PARTY, home), token_of(PARTY, home)
    whole = ring.read_bytes()

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            for place in range(0, len(whole), 3):  # all of them elsewhere
                changed = bytearray(whole)
                changed[place] ^= 1 << place % 8
                ring.write_bytes(changed)
                code = why_closed(home, lock, list(keyed.secrets.values()))
                assert code in {"keyring-damaged", "keyring-locked"}
            assert await ask(keyed, office, "data") == keyed.secrets[PARTY, "data"]
        with pytest.raises(CloisterError), keeper_of(keyed, PARTY, home):
            pass
        ring.write_bytes(whole)
        async with office_of(keyed, PARTY, home) as office:
            assert await ask(keyed, office, "data") == keyed.secrets[PARTY, "data"]

    run(story())


# Moved


@pytest.mark.parametrize("how", ["swapped", "renamed", "another custodian's"])
def test_sealed_keys_are_moved_while_the_custodian_runs(
    run: Run, keyed: KeyedFederation, home: Path, how: str
) -> None:
    """Each is whole and genuinely sealed, and lies where another one lay."""
    changes: dict[str, tuple[Callable[[Rows], None], KeyKind]] = {
        "swapped": (partial(swap, data_key(keyed), share_of(keyed)), "state-share"),
        "renamed": (partial(rename, data_key(keyed)), "data"),
    }
    if how == "another custodian's":
        theirs = steal(home, home.with_name("theirs"))
        with keeper_of(keyed, "aggregator", theirs) as other:
            [row] = other.register.kept_keys()
        assert row.sealed is not None
        changes[how] = (partial(replace_sealed, data_key(keyed), row.sealed), "data")
    change, kind = changes[how]

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            forge(database_of(PARTY, home), change)
            with pytest.raises(CloisterError) as caught:
                await ask(keyed, office, kind)
            if how == "renamed":
                assert caught.value.code == "key-unknown"
            else:
                # The custodian's trouble, so no word about the node or the key.
                assert isinstance(caught.value, PeerInTrouble)
                assert caught.value.code == "key-damaged"
            assert office.events("keys-released") == []
            assert "key-released" not in kinds_recorded(office.custodian)
            [refused] = office.events("node-refused")
            check_no_key_in(f"{refused}{caught.value!r}", keyed.secrets.values())

    run(story())
    lock = token_of(PARTY, home)
    assert why_closed(home, lock, list(keyed.secrets.values())) == "key-damaged"
