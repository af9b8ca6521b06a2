"""A simulated federation without any process: a plan, its keys, and its nodes.

Everything in it is real, down to the quotes; only the machine is not measured, so that
a node is made in a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.plan_tree import (
    WORKERS,
    Tree,
    add_recipient,
    add_worker,
    measurement_of,
    plan_tree,
    put,
    toml_of,
)

from cloister.attestation.collateral_source import CollateralFiles
from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.collateral import (
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.reports import Tee
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, parse_plan, plan_hash
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.clock import FlooredClock
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver, IdentityProver
from cloister.ratls.warrant import HeldWarrant, Warrant, WarrantTerms, sign_warrant
from cloister.storage.model_vault import new_identity as new_recipient

# TLS looks at the real clock, so stories begin now.
START = datetime.now(UTC).replace(microsecond=0)
TEES: dict[str, Tee] = {
    "aggregator": "sgx",
    "alice": "tdx",
    "bob": "sgx",
    "rita": "tdx",
}
WARRANT_LIFE = timedelta(days=1)


class HandClock:
    """A clock that somebody sets."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, by: timedelta) -> None:
        self.now += by

    def floored(self) -> FlooredClock:
        """Returns a node's clock that stands still unless this one is set."""
        return FlooredClock(self, elapsed=lambda: 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """A plan of one server, two workers and any recipients, and what they all own.

    Attributes:
        directory: Where the platforms' keys lie.
        root: The development root.
        plan: The plan.
        keys: Each party's key.
        owner: Identity (secret) of the model's recipient.
        vaults: Each attested recipient's identity (secret), by party.
    """

    directory: Path
    root: SimulatedRoot
    plan: Plan
    keys: Mapping[str, Ed25519PrivateKey]
    owner: str
    vaults: Mapping[str, str] = field(default_factory=dict)

    def node(
        self,
        party: str,
        *,
        clock: HandClock | None = None,
        epoch: int = 1,
        measurement: Measurement | None = None,
    ) -> Node:
        """Returns a fresh node of a party, warranted and able to prove itself."""
        clock = clock or HandClock()
        identity = new_identity()
        floored = clock.floored()
        attested = self.plan.find_party(party).admit == "attested"
        return Node(
            plan=self.plan,
            plan_hash=plan_hash(self.plan),
            role=self.plan.find_party(party).role,
            party=party,
            identity=identity,
            prover=EvidenceProver(
                platform=self.platform(party, measurement=measurement)
            )
            if attested
            else IdentityProver(key=self.keys[party]),
            appraiser=self.appraiser(floored),
            warrant=HeldWarrant(
                self.warrant(party, identity.tls_spki, epoch=epoch, issued_at=clock())
            ),
            epochs=EpochMemory(),
            clock=floored,
        )

    def appraiser(self, clock: FlooredClock) -> Appraiser:
        """Returns how everybody here judges evidence."""
        return Appraiser(
            root=self.root.trust_root,
            collateral=CollateralFiles(self.root.directory),
            clock=clock,
        )

    def platform(
        self, party: str, *, measurement: Measurement | None = None
    ) -> SimulatedPlatform:
        """Returns a party's simulated platform."""
        role = self.plan.find_party(party).role
        return load_simulated_platform(
            self.directory / party,
            tee=TEES.get(party, "tdx"),
            measurement=measurement or measurement_of(role),
        )

    def terms(
        self,
        party: str,
        tls_key: Spki,
        *,
        epoch: int = 1,
        issued_at: datetime = START,
    ) -> WarrantTerms:
        """Returns the terms a party's custodian would sign."""
        return WarrantTerms(
            run_id=self.plan.run_id,
            plan_hash=plan_hash(self.plan),
            role=self.plan.find_party(party).role,
            party=party,
            tls_key=tls_key,
            epoch=epoch,
            issued_at=int(issued_at.timestamp()),
            expires_at=int((issued_at + WARRANT_LIFE).timestamp()),
        )

    def warrant(
        self,
        party: str,
        tls_key: Spki,
        *,
        epoch: int = 1,
        issued_at: datetime = START,
    ) -> Warrant:
        """Returns a warrant signed with the party's own key."""
        terms = self.terms(party, tls_key, epoch=epoch, issued_at=issued_at)
        return sign_warrant(terms, self.keys[party])


def make_federation(
    directory: Path,
    *,
    change: Callable[[Tree], Tree] = lambda tree: tree,
    pinned: bool = False,
    recipients: tuple[str, ...] = (),
    more_workers: tuple[str, ...] = (),
) -> Federation:
    """Makes a development root, a platform for every party, keys and a plan.

    Args:
        directory: Where the platforms' keys go.
        change: What to change in the plan.
        pinned: Whether the plan names every party's platform.
        recipients: Attested recipients; "rita" or anybody.
        more_workers: Attested workers beside alice and bob.
    """
    names = ("aggregator", *WORKERS, *more_workers, *recipients)
    root = create_simulated_root(directory / "root", at=START - timedelta(days=30))
    write_simulated_collateral(root, at=START - timedelta(days=1))
    platforms = {
        name: root.issue_platform(
            directory / name, name=name, at=START - timedelta(days=30)
        )
        for name in names
    }
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    owner, recipient = new_recipient()
    tree = plan_tree(
        root=root.trust_root.name,
        keys={name: format_party_key(key) for name, key in keys.items()},
        recipient=recipient,
    )
    for place, name in enumerate(more_workers, 1 + len(WORKERS)):
        add_worker(tree, name)
        put(tree, ("party", place, "key"), format_party_key(keys[name]))
    vaults = {}
    for name in recipients:
        vaults[name], recipient = new_recipient()
        add_recipient(tree, name, recipient=recipient, key=format_party_key(keys[name]))
    if pinned:
        pin_platforms(tree, platforms)
    return Federation(
        directory=directory,
        root=root,
        plan=parse_plan(toml_of(change(tree))),
        keys=keys,
        owner=owner,
        vaults=vaults,
    )


def pin_platforms(tree: Tree, platforms: Mapping[str, str]) -> Tree:
    """Names each party's one platform in a plan; returns the same tree."""
    parties = tree["party"]
    assert isinstance(parties, list)
    for party in parties:
        assert isinstance(party, dict)
        party["platforms"] = [platforms[str(party["name"])]]
    return tree


def rewarranted(federation: Federation, node: Node, **terms: Any) -> Node:
    """Returns the node with a warrant of its own party but for other terms."""
    old = node.warrant.current.terms
    changed: WarrantTerms = msgspec.structs.replace(old, **terms)
    return warranted(node, sign_warrant(changed, federation.keys[node.party]))


def warranted(node: Node, warrant: Warrant) -> Node:
    """Returns the node with another warrant, whoever's it is."""
    return replace(node, warrant=HeldWarrant(warrant))


def quoting(node: Node, platform: Platform) -> Node:
    """Returns the node with evidence of another platform."""
    return replace(node, prover=EvidenceProver(platform=platform))
