"""Everything in one process that holds a secret, and the secrets, to be looked for."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.support.canaries import Canaries, shown_of
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_meeting import CustodyMeeting, custodian_of
from tests.support.federation_in_memory import START
from tests.support.keyrings import Safe, new_safe
from tests.support.registers import PARTY

from cloister.custody.custodian import Custodian
from cloister.custody.key_store import RegisterKeys
from cloister.custody.keyring import (
    FIRST_GENERATION,
    Keyring,
    Passphrase,
    open_keyring,
)
from cloister.custody.node_keys import NodeKeys
from cloister.custody.register import Register
from cloister.errors import CloisterError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.ratls.admission import AdmissionAuthority, new_authority
from cloister.ratls.identity import NodeIdentity
from cloister.ratls.node import Node
from cloister.storage.age import read_identity
from cloister.storage.keys import KeyKind, Secret

Provoke = Callable[["SecretScene", Path], object]
Change = Callable[[bytes], bytes]

# As many digits as NumPy shows.
_VALUES = np.array([1.37281946, 2.46918573, 3.71926485, 4.58162937])


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretScene:
    """What holds secrets, and which they are.

    Attributes:
        canaries: Looks for all of them.
        keyed: The federation, and the keys that its plan names.
        safe: Where a register and its keyring lie.
        keyring: The keyring, open.
        keys: The keys in that register.
        node: Alice's.
        authority: A server's admission CA.
        custodian: Alice's.
        passphrase: Of no keyring yet.
    """

    canaries: Canaries
    keyed: KeyedFederation
    safe: Safe
    keyring: Keyring
    keys: RegisterKeys = field(repr=False)
    node: Node
    authority: AdmissionAuthority
    custodian: Custodian
    passphrase: Passphrase

    def secret(self, party: str, kind: KeyKind) -> Secret:
        """Returns a key that the plan names."""
        return self.keyed.secrets[party, kind]

    @property
    def vault(self) -> str:
        """Rita's identity."""
        return self.secret("rita", "vault").reveal().decode()

    def model(self) -> ModelBuffer:
        """Returns a model with values that are looked for."""
        model = ModelBuffer(layout_of({"weight": np.zeros(2)}, {"canary": _VALUES}))
        model.statistics[:] = _VALUES
        return model

    def meeting(self) -> CustodyMeeting:
        """Returns a session in which alice's node got its warrant."""
        meeting = CustodyMeeting(self.custodian, self.node)
        meeting.accept()
        plant_node(self.canaries, meeting.identity)
        return meeting

    def node_keys(self) -> NodeKeys:
        """Returns what alice's node has in the end."""
        state = Secret(self.canaries.plant("state key", secrets.token_bytes(32)))
        released: dict[KeyKind, Secret] = {"data": self.secret("alice", "data")}
        return NodeKeys(node=self.node, released=released, state=state, platform=None)


@contextmanager
def secret_scene(directory: Path) -> Iterator[SecretScene]:
    """Makes it all in a directory, and lends it."""
    canaries, keyed = Canaries(), make_keyed(directory / "keyed")
    _plant_keys(canaries, keyed)
    (directory / "safe").mkdir()
    safe = new_safe(directory / "safe")
    keyring = open_keyring(safe.keyring, party=PARTY, lock=safe.lock)
    canaries.plant("keyring key", keyring.keys[FIRST_GENERATION].reveal())
    canaries.plant_identity("keyring identity", read_identity(safe.identity))
    words = canaries.plant("passphrase", secrets.token_urlsafe(24).encode())
    node = keyed.federation.node("alice")
    plant_node(canaries, node.identity)
    authority = new_authority(at=START, life=timedelta(days=1))
    scalar = authority.key.private_numbers().private_value
    canaries.plant("admission CA", scalar.to_bytes(32))
    canaries.plant("model", _VALUES.tobytes())
    canaries.plant("model", str(_VALUES[0]).encode())
    store = keyed.stores["alice"]
    with (
        Register.open(safe.database) as register,
        custodian_of(keyed.federation, "alice", directory, keys=store) as custodian,
    ):
        yield SecretScene(
            canaries=canaries,
            keyed=keyed,
            safe=safe,
            keyring=keyring,
            keys=safe.keys(register),
            node=node,
            authority=authority,
            custodian=custodian,
            passphrase=Passphrase(text=Secret(words)),
        )


def leaks(canaries: Canaries, fail: Callable[[], object]) -> set[str]:
    """Returns the secrets in what `fail` ends with, which is an error of ours."""
    with pytest.raises(CloisterError) as caught:
        fail()
    return canaries.found_in(shown_of(caught.value))


def private(directory: Path, content: bytes) -> Path:
    """Writes a file that is its owner's alone."""
    path = directory / "file"
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def plant_node(canaries: Canaries, identity: NodeIdentity) -> None:
    """Looks for a node's private keys."""
    scalar = identity.tls_key.private_numbers().private_value
    canaries.plant("TLS key", scalar.to_bytes(32))
    canaries.plant("X25519 key", identity.encryption_key.private_bytes_raw())


def _plant_keys(canaries: Canaries, keyed: KeyedFederation) -> None:
    for (party, kind), key in keyed.secrets.items():
        if kind == "vault":
            canaries.plant_identity(f"{kind} of {party}", key.reveal().decode())
        else:
            canaries.plant(f"{kind} of {party}", key.reveal())
    for party, party_key in keyed.federation.keys.items():
        canaries.plant(f"party key of {party}", party_key.private_bytes_raw())
    canaries.plant_identity("owner", keyed.federation.owner)
