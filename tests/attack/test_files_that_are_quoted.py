"""People put a secret where it does not belong; no error shows it to them or to a log.

A key with a byte too many, an identity in place of its recipient: what is wrong is said
in words, for what was read may be the secret with a typing error.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from tests.support.federation_in_memory import make_federation
from tests.support.plan_tree import Tree
from tests.support.secret_scene import (
    Change,
    Provoke,
    SecretScene,
    leaks,
    private,
    secret_scene,
)

from cloister.cli.passphrases import read_passphrase
from cloister.custody.key_material import read_key
from cloister.custody.party_key import read_party_key
from cloister.storage.keys import KeyKind

LATIN = b"# f\xfcr mich\n"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretScene]:
    with secret_scene(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


def key_in(kind: KeyKind, change: Change) -> Provoke:
    """Returns what reads a key from a file that holds something like one."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        key = scene.vault.encode()
        if kind != "vault":
            key = scene.secret("alice", "data").reveal()
        return read_key(private(directory, change(key)), kind=kind)

    return provoke


def passphrase_in(change: Change) -> Provoke:
    """Returns what reads a passphrase from a file that is not as it should be."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        words = scene.passphrase.text.reveal()
        return read_passphrase(private(directory, change(words)))

    return provoke


def party_key_in(change: Change, password: str = "") -> Provoke:
    """Returns what reads a party's key that is not as it should be."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        lock: KeySerializationEncryption = NoEncryption()
        if password:
            lock = BestAvailableEncryption(scene.passphrase.text.reveal())
        key = scene.keyed.federation.keys["alice"]
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
        return read_party_key(private(directory, change(pem)))

    return provoke


def party_key_of_another_kind(scene: SecretScene, directory: Path) -> object:
    return read_party_key(private(directory, scene.node.identity.tls_key_pem()))


def in_a_plan(change: Callable[[Tree, SecretScene], None]) -> Provoke:
    """Returns what reads a plan in which a secret stands in place of its name."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        def changed(tree: Tree) -> Tree:
            change(tree, scene)
            return tree

        return make_federation(directory / "plan", change=changed, recipients=("rita",))

    return provoke


def in_party(name: str, member: str, text: Callable[[SecretScene], str]) -> Provoke:
    """Returns what reads a plan that says a secret of a party."""

    def change(tree: Tree, scene: SecretScene) -> None:
        parties = tree["party"]
        assert isinstance(parties, list)
        for party in parties:
            assert isinstance(party, dict)
            if party["name"] == name:
                party[member] = text(scene)

    return in_a_plan(change)


def as_recipient_of_the_model(tree: Tree, scene: SecretScene) -> None:
    tree["model"] = {"recipients": [scene.vault]}


FILES: dict[str, Provoke] = {
    "a key with a byte too many": key_in("data", lambda it: it + b"\n"),
    "a key that was cut": key_in("data", lambda it: it[:-1]),
    "hex of odd length": key_in("data", lambda it: it.hex().encode()[:-1]),
    "hex and more": key_in("state-share", lambda it: it.hex().encode() + b" # mine"),
    "base64": key_in("data", base64.b64encode),
    "a data key as vault": key_in("vault", lambda it: it[16:]),
    "an identity in two lines": key_in("vault", lambda it: it[:40] + b"\n" + it[40:]),
    "an identity misspelt": key_in("vault", lambda it: it[:-1] + b"B"),
    "an identity in lower case": key_in("vault", bytes.lower),
    "an identity under a comment": key_in("vault", lambda it: LATIN + it),
    "a passphrase in Latin-1": passphrase_in(lambda it: it + LATIN),
    "two passphrases": passphrase_in(lambda it: it + b"\n" + it),
    "a passphrase that never ends": passphrase_in(lambda it: it * 200),
    "a party key altered": party_key_in(lambda it: it.replace(b"M", b"?", 1)),
    "a party key cut off": party_key_in(lambda it: it[:60]),
    "a party key without its frame": party_key_in(lambda it: it.splitlines()[1]),
    "a party key cut in two": party_key_in(lambda it: it[:70] + b"\n\n" + it[75:]),
    "a party key with a password": party_key_in(bytes, "password"),
    "a party key of another kind": party_key_of_another_kind,
    "a plan with an identity": in_a_plan(as_recipient_of_the_model),
    "a recipient's identity": in_party("rita", "recipient", lambda it: it.vault),
    "a worker's data key": in_party(
        "bob", "data_key", lambda it: it.secret("bob", "data").reveal().hex()
    ),
    "a worker's share": in_party(
        "bob",
        "state_share",
        lambda it: f"sha256:{it.secret('alice', 'state-share').reveal().hex()}",
    ),
    "a party's private key": in_party(
        "bob",
        "key",
        lambda it: it.keyed.federation.keys["bob"].private_bytes_raw().hex(),
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_an_error_says_nothing_of_a_secret(
    scene: SecretScene, what: str, tmp_path: Path
) -> None:
    assert leaks(scene.canaries, lambda: FILES[what](scene, tmp_path)) == set()
