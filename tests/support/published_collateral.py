"""New collateral for a federation in memory, as Intel would publish it one day."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from tests.support.federation_in_memory import START, Federation

from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    SimulatedCollateral,
    met_level,
)
from cloister.attestation.platforms.simulated.profile import MACHINE
from cloister.attestation.reports import Tee

# After the collateral that a federation begins with.
PUBLISHED = START - timedelta(hours=1)


def collateral_path(federation: Federation, tee: Tee) -> Path:
    """Returns the file that everybody in the federation reads collateral from."""
    return Path(federation.root.directory) / COLLATERAL_FILES[tee]


def publish(federation: Federation, collateral: SimulatedCollateral) -> None:
    """Puts collateral in the place of what was there."""
    signed = collateral.signed_by(federation.root)
    collateral_path(federation, collateral.tee).write_text(json.dumps(signed))


def up_to_date(tee: Tee, *, at: datetime = PUBLISHED) -> SimulatedCollateral:
    """Returns collateral that finds nothing amiss."""
    return SimulatedCollateral(tee=tee, at=at)


def out_of_date(tee: Tee) -> SimulatedCollateral:
    """Returns collateral after a TCB recovery: every platform needs an update."""
    level = met_level(MACHINE, tee=tee, date=PUBLISHED, status="OutOfDate")
    return SimulatedCollateral(tee=tee, at=PUBLISHED, levels=(level,))


def revoking(tee: Tee, unverified_quote: bytes) -> SimulatedCollateral:
    """Returns collateral that revokes the platform behind a quote."""
    chain = parse_evidence(unverified_quote).pck_chain_pem
    pck = x509.load_pem_x509_certificates(chain)[0]
    return SimulatedCollateral(
        tee=tee, at=PUBLISHED, revoked_by_ca=(pck.serial_number,), crl_number=2
    )
