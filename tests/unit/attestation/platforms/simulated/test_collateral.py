"""The simulated platform against an independent verifier, as an oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import dcap_qvl
import pytest

from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    simulated_collateral,
    write_simulated_collateral,
)
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.reports import Tee
from cloister.errors import ConfigError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
FIELDS = {
    "tcb_info",
    "tcb_info_signature",
    "tcb_info_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
    "qe_identity_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "pck_crl_issuer_chain",
}


def judged(
    quote: bytes, collateral: dict[str, str], root: SimulatedRoot, at: datetime
) -> tuple[str, list[str]]:
    report = dcap_qvl.verify_with_root_ca(
        quote,
        dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral)),
        root.trust_root.der,
        int(at.timestamp()),
    )
    return report.status, report.advisory_ids


@pytest.mark.parametrize("tee", TEES)
def test_an_independent_verifier_finds_the_platform_up_to_date(
    quotes: Mapping[Tee, bytes], root: SimulatedRoot, at: datetime, tee: Tee
) -> None:
    collateral = simulated_collateral(root, tee=tee, at=at)
    assert set(collateral) == FIELDS
    assert judged(quotes[tee], collateral, root, at) == ("UpToDate", [])


@pytest.mark.parametrize("tee", TEES)
def test_the_independent_verifier_does_look(
    quotes: Mapping[Tee, bytes],
    root: SimulatedRoot,
    at: datetime,
    tee: Tee,
    tmp_path: Path,
) -> None:
    other = create_simulated_root(tmp_path / "other", at=at)
    collateral = simulated_collateral(root, tee=tee, at=at)
    foreign = simulated_collateral(other, tee=tee, at=at)
    late = at + timedelta(days=31)
    for wrong, judge, when in (
        (collateral, other, at),
        (foreign, root, at),
        (collateral, root, late),
        ({**collateral, "tcb_info_signature": "00" * 64}, root, at),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - prose is all the oracle gives
            judged(quotes[tee], wrong, judge, when)


@pytest.mark.parametrize("tee", TEES)
def test_collateral_lies_beside_the_root_and_is_never_overwritten(
    tmp_path: Path, at: datetime, tee: Tee
) -> None:
    made = create_simulated_root(tmp_path / "root", at=at)
    write_simulated_collateral(made, at=at)
    path = made.directory / COLLATERAL_FILES[tee]
    assert json.loads(path.read_text()).keys() == FIELDS
    with pytest.raises(ConfigError) as refusal:
        write_simulated_collateral(made, at=at)
    assert refusal.value.code == "simulated-exists"
