"""A simulated federation of any size for benchmarks: files, and nodes made from them.

Nothing of the machine is measured, so that a node is made in a millisecond; quotes,
collateral, warrants and keys are as real as the simulated platform's are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attestation.collateral_source import CollateralFiles
from cloister.attestation.platforms.measurement import (
    Installation,
    Measurement,
    node_measurement,
)
from cloister.attestation.platforms.simulated.collateral import (
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.platform import load_simulated_platform
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.attestation.trust_root import simulated_trust_root
from cloister.cli.deployment_files import ModelEntry, PartyEntry, plan_text
from cloister.cli.recipes import DIGITS
from cloister.plan.keys import format_party_key
from cloister.plan.plan import parse_plan, plan_hash
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.clock import FlooredClock
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver
from cloister.ratls.warrant import HeldWarrant, WarrantTerms, sign_warrant
from cloister.storage.model_vault import new_identity as new_recipient

SERVER = "server"
_DAY = timedelta(days=1)


def prepare(
    directory: Path, workers: int, *, shares: Mapping[str, str] | None = None
) -> None:
    """Writes a plan of so many parties, their keys, and two simulated platforms.

    Args:
        directory: Where.
        workers: How many of the parties are workers.
        shares: Names of the shares of the state keys, by party.
    """
    held = shares or {}
    now = datetime.now(UTC)
    root = create_simulated_root(directory / "root", at=now - 30 * _DAY)
    write_simulated_collateral(root, at=now - _DAY)
    platforms = {
        name: root.issue_platform(directory / name, name=name, at=now - 30 * _DAY)
        for name in ("server", "worker")
    }
    (directory / "root.der").write_bytes(root.trust_root.der)
    names = ["server", *(f"worker-{number}" for number in range(workers))]
    keys = {name: Ed25519PrivateKey.generate() for name in names}
    (directory / "keys.json").write_text(
        json.dumps({name: key.private_bytes_raw().hex() for name, key in keys.items()})
    )
    plan = plan_text(
        DIGITS,
        run="benchmark",
        parties=tuple(
            PartyEntry(
                name=name,
                role="worker" if number else "server",
                key=format_party_key(keys[name]),
                data=f"sha256:{number:064x}" if number else None,
                platforms=(platforms["worker" if number else "server"],),
                state_share=held.get(name),
            )
            for number, name in enumerate(names)
        ),
        root=root.trust_root.name,
        measurements={role: measured(role) for role in ("server", "worker")},
        model=ModelEntry(recipient=new_recipient()[1]),
    )
    (directory / "plan.toml").write_text(plan)


class Scene:
    """What `prepare` wrote, read again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plan = parse_plan((directory / "plan.toml").read_bytes())
        self.hash = plan_hash(self.plan)
        self.keys = json.loads((directory / "keys.json").read_text())
        self.root = simulated_trust_root((directory / "root.der").read_bytes())
        self.platforms = {
            role: load_simulated_platform(
                directory / role, tee="sgx", measurement=measured(role)
            )
            for role in ("server", "worker")
        }

    def party_key(self, party: str) -> Ed25519PrivateKey:
        """Returns the key that a party's custodian keeps."""
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.keys[party]))

    def appraiser(self, clock: FlooredClock) -> Appraiser:
        """Returns how everybody judges evidence."""
        return Appraiser(
            root=self.root,
            collateral=CollateralFiles(self.directory / "root"),
            clock=clock,
        )

    def node(self, party: str, *, epoch: int = 1) -> Node:
        """Returns a warranted node."""
        found = self.plan.find_party(party)
        identity, clock = new_identity(), FlooredClock(lambda: datetime.now(UTC))
        now = int(time.time())
        terms = WarrantTerms(
            run_id=self.plan.run_id,
            plan_hash=self.hash,
            role=found.role,
            party=party,
            tls_key=identity.tls_spki,
            epoch=epoch,
            issued_at=now,
            expires_at=now + 86_400,
        )
        return Node(
            plan=self.plan,
            plan_hash=self.hash,
            role=found.role,
            party=party,
            identity=identity,
            prover=EvidenceProver(platform=self.platforms[found.role]),
            appraiser=self.appraiser(clock),
            warrant=HeldWarrant(sign_warrant(terms, self.party_key(party))),
            epochs=EpochMemory(),
            clock=clock,
        )


def measured(role: str) -> Measurement:
    """Returns the measurement of a made-up installation."""
    installation = Installation(
        interpreter=bytes(32),
        installed=bytes(32),
        interpreter_files=1,
        installed_files=1,
        total_bytes=2,
    )
    return node_measurement(installation, sources=(b"",), role=role)
