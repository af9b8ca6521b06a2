"""Collateral as a host may have it on its disk, in each way that does not count."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.federation_in_memory import START, Federation

from cloister.attestation.collateral_source import CollateralFiles, collateral_file_name
from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.profile import MACHINE
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.ratls.appraiser import Appraiser

TEES: tuple[Tee, ...] = ("sgx", "tdx")
Text = Callable[[SimulatedRoot, Tee], str]

# Begins and ends (after 30 days) before the stories do.
EXPIRED = START - timedelta(days=40)
# What Intel publishes after a TCB recovery; the simulation's own is 1.
NUMBER = 2


def _signed(root: SimulatedRoot, collateral: SimulatedCollateral) -> str:
    return json.dumps(collateral.signed_by(root))


def _by_another_key(issuer: Issuer) -> Issuer:
    return replace(issuer, key=ec.generate_private_key(ec.SECP256R1()))


def good(root: SimulatedRoot, tee: Tee) -> str:
    at = START - timedelta(hours=1)
    return _signed(
        root,
        SimulatedCollateral(
            tee=tee, at=at, tcb_info_number=NUMBER, qe_identity_number=NUMBER
        ),
    )


def expired(root: SimulatedRoot, tee: Tee) -> str:
    return _signed(root, SimulatedCollateral(tee=tee, at=EXPIRED))


def of_the_future(root: SimulatedRoot, tee: Tee) -> str:
    return _signed(root, SimulatedCollateral(tee=tee, at=START + timedelta(hours=1)))


def signed_by_another_key(root: SimulatedRoot, tee: Tee) -> str:
    forger = replace(root, signing=_by_another_key(root.signing))
    return _signed(forger, SimulatedCollateral(tee=tee, at=START))


def with_a_forged_list(root: SimulatedRoot, tee: Tee) -> str:
    forger = replace(root, ca=_by_another_key(root.ca))
    return _signed(forger, SimulatedCollateral(tee=tee, at=START))


def for_another_family(root: SimulatedRoot, tee: Tee) -> str:
    machine = replace(MACHINE, fmspc=bytes.fromhex("ff53494d0002"))
    return _signed(root, SimulatedCollateral(tee=tee, at=START, machine=machine))


def of_an_old_number(root: SimulatedRoot, tee: Tee) -> str:
    return _signed(root, SimulatedCollateral(tee=tee, at=START, tcb_info_number=NUMBER))


def torn(root: SimulatedRoot, tee: Tee) -> str:
    return good(root, tee)[:-100]


def write_collateral(federation: Federation, directory: Path, text: Text) -> Path:
    """Fills a directory with collateral of one kind; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    for tee in TEES:
        path = directory / collateral_file_name(tee)
        path.write_text(text(federation.root, tee))
    return directory


def judging_by(appraiser: Appraiser, directory: Path) -> Appraiser:
    """Returns an appraiser that reads its collateral elsewhere."""
    return replace(appraiser, collateral=CollateralFiles(directory))
