"""A deployment whose secrets are known: planted, read from files, or told."""

from __future__ import annotations

import secrets
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.integration.conftest import (
    CANARY_TASK,
)
from tests.integration.secret_story import Story

from cloister.cli.custodians import open_keys
from cloister.cli.deployment import DeploymentOrder, write_deployment
from cloister.cli.host_time import utc_now
from cloister.cli.places import read_custodian_place
from cloister.cli.recipes import DIGITS
from cloister.custody.keyring import (
    IdentityFile,
    Passphrase,
    open_keyring,
    save_keyring,
)
from cloister.custody.state_key import state_key_from_shares
from cloister.plan.plan import Role, plan_hash, read_plan
from cloister.storage.age import new_identity, read_identity
from cloister.storage.keys import KeyKind, Secret
from cloister.workloads.digits import DigitStream

PARTIES = ("aggregator", "alice", "rita")
# Appended to the canary task. A node's keys exist in its memory alone, and the node
# lets nobody read that; but its task is code in it, and tells them to the test.
TELLING = """

import gc
import json
import os
import sys
from pathlib import Path

_TELL_TO = Path("{told}")
_written = []


def _hear(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        if (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(os.fsdecode(arguments[0]))


def _tell():
    secrets = {}
    for it in gc.get_objects():
        kind = type(it).__name__
        if kind == "NodeIdentity":
            secrets["TLS key"] = _scalar(it.tls_key)
            secrets["X25519 key"] = it.encryption_key.private_bytes_raw().hex()
        elif kind == "AdmissionAuthority":
            secrets["admission CA"] = _scalar(it.key)
    command = sys.orig_argv[sys.orig_argv.index("cloister") + 1]
    told = {"secrets": secrets, "written": list(_written)}
    (_TELL_TO / command).write_text(json.dumps(told))


def _scalar(key):
    return key.private_numbers().private_value.to_bytes(32).hex()


class Telling(Canary):
    def __init__(self):
        sys.addaudithook(_hear)

    def export(self, model):
        _tell()
        return super().export(model)

    def load_exported(self, arrays):
        _tell()
        return super().load_exported(arrays)

    def learner(self, source, settings):
        made = super().learner(source, settings)
        step = made.step

        def telling(round_number, out):
            _tell()
            return step(round_number, out)

        made.step = telling
        return made
"""


def make(story: Story) -> None:
    """Makes a deployment whose every key was planted."""
    task = story.outside / "task.py"
    telling = TELLING.replace("{told}", str(story.outside / "told"))
    task.write_text(CANARY_TASK.read_text() + telling)
    recipe = replace(
        DIGITS,
        name="canary",
        task=task,
        task_class="Telling",
        options={},
        rounds=4,
        warmup_rounds=1,
        learning_rate=1.0,
        evaluate_every=2,
    )
    order = DeploymentOrder(
        directory=story.deployment.directory,
        recipe=recipe,
        run="test",
        workers=(("alice", "tdx"),),
        server_tee="sgx",
        data=None,
        recipients=(("rita", "tdx"),),
    )
    write_deployment(order, at=utc_now(), tell=story.said.append)
    plant_chosen(story)
    plant_made(story)
    lock_by_passphrase(story)
    story.deployment.sign()


def lock_by_passphrase(story: Story) -> None:
    """Has a passphrase open rita's keyring, where an identity did."""
    directory = story.deployment.custodian("rita")
    words = story.canaries.plant("passphrase", secrets.token_urlsafe(24).encode())
    (directory / "passphrase").touch(mode=0o600)
    (directory / "passphrase").write_bytes(words + b"\n")
    path = directory / "keyring.age"
    was = IdentityFile(path=directory / "keyring-identity.txt")
    keyring = open_keyring(path, party="rita", lock=was)
    save_keyring(path, keyring, lock=Passphrase(text=Secret(words)))
    story.deployment.edit(
        directory / "custodian.toml",
        'identity = "keyring-identity.txt"',
        'passphrase_file = "passphrase"',
    )


def plant_chosen(story: Story) -> None:
    """Has custodians take in keys that we chose, and the plan name them."""
    canaries, identity = story.canaries, new_identity()[0]
    key = canaries.plant("data key", secrets.token_bytes(32))
    part = canaries.plant("share of alice", secrets.token_bytes(32))
    canaries.plant_identity("vault key", identity)
    file = story.file("data", key.hex().encode())
    alice_at = str(story.deployment.custodian("alice"))
    add = ("custodian", "keys", "add", alice_at, "data", "--from", file)
    data = story.do(*add).strip()
    share = keep(story, "alice", "state-share", part)
    vault = keep(story, "rita", "vault", identity.encode())
    story.file("identity", identity.encode())
    plan = read_plan(story.deployment.plan)
    alice, rita = plan.find_party("alice"), plan.find_party("rita")
    assert alice.state_share
    assert rita.recipient
    assert alice.data
    assert alice.data_key
    edit = story.deployment.edit
    edit(story.deployment.plan, alice.state_share, share)
    sealed = story.deployment.seal("alice", DigitStream(seed=7), key=data)
    edit(story.deployment.plan, alice.data, sealed.digest)
    edit(story.deployment.plan, alice.data_key, data)
    edit(story.deployment.plan, rita.recipient, vault)


def keep(story: Story, party: str, kind: KeyKind, key: bytes) -> str:
    """Does what ``custodian keys add`` does, without a process."""
    place = read_custodian_place(story.deployment.custodian(party))
    with story.deployment.register(party) as register:
        keys = open_keys(place, register)
        return keys.add(kind, label="planted", at=utc_now(), secret=Secret(key))


def plant_keyring(story: Story, party: str) -> None:
    """Looks for the keys in a keyring that an identity opens, by generation."""
    directory = story.deployment.custodian(party)
    lock = IdentityFile(path=directory / "keyring-identity.txt")
    keyring = open_keyring(directory / "keyring.age", party=party, lock=lock)
    for number, secret in keyring.keys.items():
        story.canaries.plant(f"keyring {number} of {party}", secret.reveal())


def plant_made(story: Story) -> None:
    """Looks for what `init` made, and for what nodes will derive of it."""
    canaries, deployment = story.canaries, story.deployment
    canaries.plant_identity("owner", read_identity(deployment.identity))
    plan = read_plan(deployment.plan)
    shares = {}
    for party in PARTIES:
        directory = deployment.custodian(party)
        identity = read_identity(directory / "keyring-identity.txt")
        canaries.plant_identity(f"keyring identity of {party}", identity)
        pem = (directory / "party-key.pem").read_bytes()
        key = load_pem_private_key(pem, password=None)
        assert isinstance(key, Ed25519PrivateKey)
        canaries.plant(f"party key of {party}", key.private_bytes_raw())
        plant_keyring(story, party)
        with deployment.register(party) as register:
            keys = open_keys(read_custodian_place(directory), register)
            share = plan.find_party(party).state_share
            if share is not None:
                shares[party] = keys.secret(share, kind="state-share")
                canaries.plant(f"share of {party}", shares[party].reveal())
    roles: tuple[tuple[Role, str], ...]
    roles = (("server", "aggregator"), ("worker", "alice"))
    for role, party in roles:
        state = state_key_from_shares(
            shares, plan=plan, plan_hash=plan_hash(plan), role=role, party=party
        )
        canaries.plant(f"state key of {party}", state.reveal())
