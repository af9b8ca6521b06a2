"""Errors are provoked around every secret; nothing that they carry shows one.

Not only their words: whoever catches an error may log its causes and their arguments.
Stack frames are not looked into, for nothing here formats them with their locals.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.support.canaries import Canaries
from tests.support.custody_keys import KeysInMemory
from tests.support.custody_meeting import CustodyMeeting
from tests.support.federation_in_memory import START
from tests.support.quick_passphrase import quickly_sealed
from tests.support.registers import PARTY
from tests.support.secret_scene import (
    Change,
    Provoke,
    SecretScene,
    leaks,
    private,
    secret_scene,
)

from cloister.cli.output import error_object
from cloister.custody.keyring import (
    FIRST_GENERATION,
    IdentityFile,
    Passphrase,
    open_keyring,
)
from cloister.custody.messages import KeysReleased
from cloister.custody.released_keys import check_key
from cloister.custody.state_key import state_key_from_shares
from cloister.errors import ConfigError
from cloister.federation.task_loading import task_code
from cloister.storage.age import encrypt, new_identity, recipient_of
from cloister.storage.keys import KeyKind, Secret, key_id
from cloister.storage.model_vault import open_model, seal_model

SECRET = bytes(range(100, 132))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretScene]:
    with secret_scene(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


def test_the_search_looks_behind_an_error() -> None:
    canaries = Canaries()
    canaries.plant("secret", SECRET)

    def fail() -> None:
        try:
            (b"\xff" + SECRET).decode()
        except UnicodeDecodeError:
            raise ConfigError("no text", code="no-text") from None

    assert leaks(canaries, fail) == {"secret"}


# --- keyrings ---


def wrong_passphrase(scene: SecretScene, directory: Path) -> object:
    other = Passphrase(text=Secret(SECRET.hex().encode()))
    scene.canaries.plant("another passphrase", SECRET)
    inside = scene.safe.lock.decrypt(scene.safe.keyring.read_bytes())
    sealed = quickly_sealed(inside, scene.passphrase.text.reveal().decode())
    path = private(directory, sealed)
    return open_keyring(path, party=PARTY, lock=other)


def keyring_of(change: Change) -> Provoke:
    """Returns what opens a keyring whose file was changed."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        path = private(directory, change(scene.safe.keyring.read_bytes()))
        return open_keyring(path, party=PARTY, lock=scene.safe.lock)

    return provoke


def keyring_that_holds(content: Callable[[str], object]) -> Provoke:
    """Returns what opens a keyring in which the key stands where it should not."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        key = scene.keyring.keys[FIRST_GENERATION].reveal()
        inside = msgspec.json.encode(content(base64.b64encode(key).decode()))
        path = private(directory, scene.safe.lock.encrypt(inside))
        return open_keyring(path, party=PARTY, lock=scene.safe.lock)

    return provoke


def keyring_of_another(scene: SecretScene, _: Path) -> object:
    return open_keyring(scene.safe.keyring, party="bob", lock=scene.safe.lock)


def keyring_under(change: Change, mode: int = 0o600) -> Provoke:
    """Returns what opens the keyring with an identity that was changed."""

    def provoke(scene: SecretScene, directory: Path) -> object:
        path = private(directory, change(scene.safe.identity.read_bytes()))
        path.chmod(mode)
        lock = IdentityFile(path=path)
        return open_keyring(scene.safe.keyring, party=PARTY, lock=lock)

    return provoke


def sealed_key_that_was_moved(scene: SecretScene, _: Path) -> object:
    ring, name = scene.keyring, key_id("data", scene.secret("alice", "data"))
    sealed = ring.seal(
        scene.secret("alice", "data"), kind="data", key_id=name, generation=1
    )
    return ring.unseal(sealed, kind="state-share", key_id=name, generation=1)


def added(kind: KeyKind, party: str, of: KeyKind, label: str = "label") -> Provoke:
    """Returns what adds a key of one kind twice, as if it were of another."""

    def provoke(scene: SecretScene, _: Path) -> object:
        for number in ("1", "2"):
            name = f"{label}{number}" if label else ""
            key = scene.secret(party, of)
            scene.keys.add(kind, label=name, at=START, secret=key)
        return None

    return provoke


KEYRINGS: dict[str, Provoke] = {
    "another passphrase": wrong_passphrase,
    "another identity": keyring_under(lambda _: new_identity()[0].encode()),
    "an identity in a file for all": keyring_under(bytes, 0o644),
    "a misspelt identity": keyring_under(lambda it: it.strip()[:-1] + b"?"),
    "an identity cut off": keyring_under(lambda it: it.strip()[:-20]),
    "two identities": keyring_under(lambda it: it + it),
    "an altered keyring": keyring_of(lambda it: it[:-1] + bytes([it[-1] ^ 1])),
    "a keyring cut off": keyring_of(lambda it: it[:-20]),
    "a keyring in the clear": keyring_that_holds(lambda key: key),
    "no keys": keyring_that_holds(lambda key: {"format": key, "party": PARTY}),
    "a key as a generation": keyring_that_holds(
        lambda key: {"format": 1, "party": PARTY, "keys": {key: key}}
    ),
    "a key that is too long": keyring_that_holds(
        lambda key: {"format": 1, "party": PARTY, "keys": {"1": key[:-1] + key}}
    ),
    "a key as a member": keyring_that_holds(
        lambda key: {"format": 1, "party": PARTY, "keys": {}, key: key}
    ),
    "another party's": keyring_of_another,
    "a sealed key that was moved": sealed_key_that_was_moved,
    "a key added twice": added("data", "bob", "data"),
    "a key without a label": added("data", "bob", "data", label=""),
    "a vault key as data": added("data", "rita", "vault"),
    "a data key as vault": added("vault", "bob", "data"),
}


# --- keys on their way, and in the node ---


def state_of(*shares: tuple[str, str, KeyKind]) -> Provoke:
    """Returns what makes a state key of shares: who gave whose key of what kind."""

    def provoke(scene: SecretScene, _: Path) -> object:
        node = scene.node
        return state_key_from_shares(
            {of: scene.secret(whose, kind) for of, whose, kind in shares},
            plan=node.plan,
            plan_hash=node.plan_hash,
            role="worker",
            party="alice",
        )

    return provoke


def key_that_differs(scene: SecretScene, _: Path) -> object:
    other = key_id("data", scene.secret("bob", "data"))
    key = scene.secret("alice", "data")
    return check_key("data", key, name=other, custodian="alice")


def vault_key_that_is_none(scene: SecretScene, _: Path) -> object:
    key = Secret(scene.vault.encode() + b"\xff")
    return check_key("vault", key, name="age1", custodian="rita")


def release_that_was_altered(scene: SecretScene, _: Path) -> object:
    meeting = scene.meeting()
    sealed = meeting.custodian.release(meeting.node.request(("data",))).sealed
    altered = KeysReleased(sealed=sealed[:-1] + bytes([sealed[-1] ^ 1]))
    return meeting.node.open(altered, kinds=("data",))


def store_that_gives_another_key(scene: SecretScene, _: Path) -> object:
    name = key_id("data", scene.secret("alice", "data"))
    store = KeysInMemory(keys={name: scene.secret("bob", "data")})
    meeting = CustodyMeeting(replace(scene.custodian, keys=store), scene.node)
    meeting.accept()
    return meeting.keys("data")


def model_for_others(scene: SecretScene, directory: Path) -> object:
    path, federation = directory / "model.age", scene.keyed.federation
    recipients = [recipient_of(federation.owner)]
    arrays = scene.model().arrays()
    seal_model(arrays, metadata={}, recipients=recipients, path=path)
    return open_model(path, identity=scene.vault)


def model_that_is_none(scene: SecretScene, directory: Path) -> object:
    """What opens is a model without its header, so the values come first."""
    path = directory / "model.age"
    content = scene.model().data.tobytes()
    path.write_bytes(encrypt(content, [recipient_of(scene.vault)]))
    return open_model(path, identity=scene.vault)


def key_that_the_node_has_not(scene: SecretScene, _: Path) -> object:
    return scene.node_keys().key("vault")


def state_key_that_the_node_has_not(scene: SecretScene, _: Path) -> object:
    return replace(scene.node_keys(), state=None).state_key()


NODES: dict[str, Provoke] = {
    "a share that differs": state_of(
        ("alice", "alice", "state-share"), ("aggregator", "alice", "state-share")
    ),
    "a share that is missing": state_of(("alice", "alice", "state-share")),
    "a share of a stranger": state_of(
        ("alice", "alice", "state-share"),
        ("aggregator", "aggregator", "state-share"),
        ("bob", "bob", "data"),
    ),
    "a key that differs": key_that_differs,
    "a vault key that is none": vault_key_that_is_none,
    "a release that was altered": release_that_was_altered,
    "a store that gives another key": store_that_gives_another_key,
    "a model for others": model_for_others,
    "a model that is none": model_that_is_none,
    "a key that the node has not": key_that_the_node_has_not,
    "a state key that the node has not": state_key_that_the_node_has_not,
}
PROVOKED = {**KEYRINGS, **NODES}


@pytest.mark.parametrize("what", PROVOKED)
def test_an_error_says_nothing_of_a_secret(
    scene: SecretScene, what: str, tmp_path: Path
) -> None:
    assert leaks(scene.canaries, lambda: PROVOKED[what](scene, tmp_path)) == set()


def test_a_task_that_fails_says_nothing_of_what_it_works_on(
    scene: SecretScene,
) -> None:
    """The cause has the task's own words; they go no further than the process."""
    values = scene.model().data.tobytes()
    with (
        pytest.raises(ConfigError) as caught,
        task_code("task.py", "training", simulated=False),
    ):
        raise ValueError(f"not converging: {values!r}")
    said = json.dumps(error_object(caught.value)) + str(caught.value)
    assert scene.canaries.found_in(said) == set()
