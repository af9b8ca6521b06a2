"""A thief has a custodian's register, its journal and its keyring.

What opens the keyring lies elsewhere. All files are real; each story ends with what is
in them, and with what the custodian gives a node over its port.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
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
from tests.support.federation_in_memory import START
from tests.support.keyrings import new_identity_file
from tests.support.quick_passphrase import quickly_sealed
from tests.support.running import Run
from tests.support.stolen_registers import (
    PARTY,
    ask,
    data_key,
    revoke,
    steal,
    why_closed,
)

from cloister.custody.keyring import (
    IdentityFile,
    Passphrase,
    create_keyring,
    open_keyring,
)
from cloister.errors import RefusedByPeer
from cloister.storage.keys import Secret

ROOT = Path(__file__).parents[2]


class UndoneError(Exception):
    """Ends a transaction that a thief looked at."""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Data keys of alice and bob, and shares of alice and the server's party."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


def test_a_thief_copies_everything_in_the_middle_of_a_revocation(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Register, hot journal, keyring and log; all but what opens the keyring."""
    home, loot = tmp_path / "home", tmp_path / "loot"
    secrets = list(keyed.secrets.values())

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            await ask(keyed, office, "data")
            with (
                contextlib.suppress(UndoneError),
                office.custodian.register.transaction() as rows,
            ):
                for row in rows.kept_keys():
                    rows.put(row, instead_of=row, at=row.at)
                steal(home, loot)
                raise UndoneError
            shutil.copytree(home / "logs", loot / "logs")
            assert await ask(keyed, office, "data") == keyed.secrets[PARTY, "data"]

    run(story())
    names = {path.name for path in loot.iterdir()}
    assert names == {
        "alice.sqlite",
        "alice.sqlite-journal",
        "alice-keyring.age",
        "logs",
    }
    check_no_key_on_disk(tmp_path, secrets)
    ring = keyring_of(PARTY, loot)
    own = IdentityFile(path=new_identity_file(tmp_path / "own.txt"))
    assert why_closed(loot, own, secrets) == "keyring-locked"
    ring.rename(tmp_path / "away.age")
    assert why_closed(loot, own, secrets) == "keyring-missing"
    # A keyring of the thief's own, in the party's name, opens itself and nothing else.
    create_keyring(ring, party=PARTY, lock=own)
    assert why_closed(loot, own, secrets) == "key-damaged"
    check_no_key_on_disk(tmp_path, secrets)


def test_a_thief_guesses_the_passphrase(keyed: KeyedFederation, tmp_path: Path) -> None:
    """The keyring costs him nothing to try here; the real one takes a second."""
    home, right = tmp_path / "home", "correct horse battery staple"
    with keeper_of(keyed, PARTY, home):
        ring, token = keyring_of(PARTY, home), token_of(PARTY, home)
        opened = open_keyring(ring, party=PARTY, lock=token)
        ring.write_bytes(quickly_sealed(token.decrypt(ring.read_bytes()), right))
    loot = steal(home, tmp_path / "loot")
    secrets = [*keyed.secrets.values(), *opened.keys.values(), Secret(right.encode())]
    guesses = [
        "",
        " ",
        right[:-1],
        right + " ",
        right.upper(),
        "correct horse",
        "e\u0301",
    ]
    for guess in guesses:
        lock = Passphrase(text=Secret(guess.encode()))
        assert why_closed(loot, lock, secrets) == "keyring-locked"
    # Nor does the identity open it that once did.
    assert why_closed(loot, token, secrets) == "keyring-locked"
    check_no_key_on_disk(loot, secrets)
    lock = Passphrase(text=secrets[-1])
    assert open_keyring(keyring_of(PARTY, loot), party=PARTY, lock=lock) == opened


# Killed


@pytest.mark.parametrize(("when", "revoked"), [("1-after", False), ("2-before", True)])
def test_a_revocation_that_was_killed_leaves_nothing_to_a_thief_and_all_to_the_party(
    run: Run, keyed: KeyedFederation, tmp_path: Path, when: str, *, revoked: bool
) -> None:
    home = tmp_path / "home"
    with keeper_of(keyed, PARTY, home):
        pass
    database, token = database_of(PARTY, home), token_of(PARTY, home)
    arguments = (database, keyring_of(PARTY, home), token.path, data_key(keyed), when)
    at = START.isoformat()
    done = subprocess.run(  # noqa: S603 - ourselves
        [
            *(sys.executable, "-m", "tests.support.revoking_process"),
            *map(str, arguments),
            at,
        ],
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    loot = steal(home, tmp_path / "loot")
    assert (loot / "alice.sqlite-journal").exists() is not revoked
    check_no_key_on_disk(tmp_path, keyed.secrets.values())

    async def story() -> None:
        async with office_of(keyed, PARTY, home) as office:
            if not revoked:
                assert await ask(keyed, office, "data") == keyed.secrets[PARTY, "data"]
                assert "key-revoked" not in kinds_recorded(office.custodian)
                revoke(keyed, office)
            with pytest.raises(RefusedByPeer) as caught:
                await ask(keyed, office, "data")
            assert caught.value.code == "key-revoked"
            share = await ask(keyed, office, "state-share")
            assert share == keyed.secrets[PARTY, "state-share"]
            assert kinds_recorded(office.custodian).count("key-revoked") == 1

    run(story())
    # The keyring has one generation again: what the thief has is of no use with it.
    ring = open_keyring(keyring_of(PARTY, home), party=PARTY, lock=token)
    assert set(ring.keys) == {2}
    if not revoked:
        shutil.copy2(keyring_of(PARTY, home), loot)
        assert why_closed(loot, token, list(keyed.secrets.values())) == (
            "keyring-generation"
        )
    check_no_key_on_disk(tmp_path, keyed.secrets.values())
