"""Keys that custodians keep, and a federation whose plan names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import Tree
from typing_extensions import override

from cloister.custody.key_store import KeyStore
from cloister.errors import VerificationError
from cloister.plan.plan import Plan
from cloister.storage.keys import KeyKind, Secret, key_id, new_key
from cloister.storage.model_vault import recipient_of

HOLDERS = ("aggregator", "alice")


@dataclass(slots=True)
class KeysInMemory(KeyStore):
    """What an organisation's own key manager may look like, as small as can be.

    Attributes:
        keys: By name.
        asked: What it was asked for, in order.
        revoked: Names of keys that it gives to nobody.
    """

    keys: dict[str, Secret] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)

    def add(self, kind: KeyKind, key: Secret) -> str:
        """Keeps a key; returns its name."""
        name = name_of(kind, key)
        self.keys[name] = key
        return name

    @override
    def secret(self, key_id: str, *, kind: KeyKind) -> Secret:
        self.asked.append(key_id)
        found = self.keys.get(key_id)
        if key_id in self.revoked or found is None:
            raise VerificationError(
                "no such key",
                code="key-revoked" if key_id in self.revoked else "key-unknown",
                got=f"{kind} {key_id}",
            )
        return found


def name_of(kind: KeyKind, key: Secret) -> str:
    """Returns what a plan calls a key."""
    if kind == "vault":
        return recipient_of(key.reveal().decode())
    return key_id(kind, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedFederation:
    """A federation whose plan names keys: data of both workers, two shares, a vault.

    Attributes:
        federation: The federation; rita is an attested recipient.
        stores: What each party's custodian keeps.
        secrets: The same, by party and kind.
    """

    federation: Federation
    stores: Mapping[str, KeysInMemory]
    secrets: Mapping[tuple[str, KeyKind], Secret]

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.federation.plan


def make_keyed(
    directory: Path,
    *,
    change: Callable[[Tree], Tree] = lambda tree: tree,
    holders: tuple[str, ...] = HOLDERS,
) -> KeyedFederation:
    """Makes a federation, and the keys that its plan names.

    Args:
        directory: Where the platforms' keys go.
        change: What else to change in the plan.
        holders: Whose custodians hold a share.
    """
    secrets: dict[tuple[str, KeyKind], Secret] = {}
    for name in ("alice", "bob"):
        secrets[name, "data"] = new_key()
    for name in holders:
        secrets[name, "state-share"] = new_key()
    federation = make_federation(
        directory,
        change=lambda tree: change(_naming(tree, secrets)),
        recipients=("rita",),
    )
    secrets["rita", "vault"] = Secret(federation.vaults["rita"].encode())
    stores = {name: KeysInMemory() for name in federation.keys}
    for (name, kind), key in secrets.items():
        stores[name].add(kind, key)
    return KeyedFederation(federation=federation, stores=stores, secrets=secrets)


def _naming(tree: Tree, secrets: Mapping[tuple[str, KeyKind], Secret]) -> Tree:
    places: dict[KeyKind, str] = {"data": "data_key", "state-share": "state_share"}
    parties = tree["party"]
    assert isinstance(parties, list)
    for party in parties:
        assert isinstance(party, dict)
        for kind, place in places.items():
            key = secrets.get((str(party["name"]), kind))
            if key is not None:
                party[place] = key_id(kind, key)
    return tree
