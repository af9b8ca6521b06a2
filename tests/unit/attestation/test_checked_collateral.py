from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.checked_collateral import (
    CheckedCollateral,
    checked_collateral,
)
from cloister.attestation.collateral import parse_collateral
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_LIFE,
    SimulatedCollateral,
)
from cloister.attestation.platforms.simulated.issuing import (
    Issuer,
    issue_platform_ca,
)
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.reports import Tee
from cloister.errors import VerificationError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
DAY = timedelta(days=1)


def said(collateral: SimulatedCollateral, by: SimulatedRoot) -> dict[str, str]:
    return collateral.signed_by(by)


def checked(
    document: dict[str, str], root: SimulatedRoot, at: datetime
) -> CheckedCollateral:
    return checked_collateral(
        parse_collateral(json.dumps(document)), root=root.trust_root, at=at
    )


def refused(
    document: dict[str, str], root: SimulatedRoot, at: datetime
) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        checked(document, root, at)
    return refusal.value


def with_ca(root: SimulatedRoot, *, issuer: Issuer, at: datetime) -> SimulatedRoot:
    """Returns `root` with a new CA of the same name, that `issuer` certified."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issue_platform_ca(key.public_key(), root=issuer, at=at)
    return replace(root, ca=Issuer(certificate=certificate, key=key))


@pytest.mark.parametrize("tee", TEES)
def test_genuine_collateral_says_when_it_is_due(
    root: SimulatedRoot, at: datetime, tee: Tee
) -> None:
    collateral = said(SimulatedCollateral(tee=tee, at=at, crl_number=5), root)
    got = checked(collateral, root, at + DAY)
    assert (got.not_before, got.not_after) == (at, at + COLLATERAL_LIFE)
    assert got.refresh_at == at + COLLATERAL_LIFE * 2 / 3
    assert [number for _, number in got.crl_numbers] == [5, 5]
    assert len({issuer for issuer, _ in got.crl_numbers}) == 2


def test_the_life_is_what_all_parts_have_in_common(
    root: SimulatedRoot, at: datetime
) -> None:
    early = said(SimulatedCollateral(tee="sgx", at=at), root)
    late = said(SimulatedCollateral(tee="sgx", at=at + 3 * DAY), root)
    mixed = early | {"pck_crl": late["pck_crl"]}
    got = checked(mixed, root, at + 4 * DAY)
    assert (got.not_before, got.not_after) == (at + 3 * DAY, at + COLLATERAL_LIFE)


@pytest.mark.parametrize(
    ("field", "step"),
    [
        ("root_ca_crl", 3),
        ("pck_crl", 3),
        ("pck_crl_issuer_chain", 3),
        ("tcb_info_signature", 4),
        ("qe_identity_signature", 4),
        ("tcb_info_issuer_chain", 4),
        ("qe_identity_issuer_chain", 4),
    ],
)
def test_any_part_of_another_root_is_refused(
    root: SimulatedRoot, at: datetime, tmp_path: Path, field: str, step: int
) -> None:
    other = create_simulated_root(tmp_path / "other", at=at)
    ours = said(SimulatedCollateral(tee="sgx", at=at), root)
    theirs = said(SimulatedCollateral(tee="sgx", at=at), other)
    assert refused(ours | {field: theirs[field]}, root, at).step == step


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("root_ca_crl", "crl"),
        ("pck_crl", "crl"),
        ("tcb_info", "tcb-info"),
        ("qe_identity", "qe-identity"),
    ],
)
@pytest.mark.parametrize(
    ("offset", "state"), [(-DAY, "expired"), (DAY, "not-yet-valid")]
)
def test_any_part_out_of_date_is_refused(
    root: SimulatedRoot,
    at: datetime,
    field: str,
    code: str,
    offset: timedelta,
    state: str,
) -> None:
    when = at + COLLATERAL_LIFE if offset < timedelta() else at
    ours = said(SimulatedCollateral(tee="sgx", at=when - COLLATERAL_LIFE / 2), root)
    wrong = said(SimulatedCollateral(tee="sgx", at=at + offset), root)
    parts = {name: wrong[name] for name in wrong if name.startswith(field)}
    assert refused(ours | parts, root, when).code == f"{code}-{state}"


def test_a_list_by_a_ca_that_the_root_did_not_certify_is_refused(
    root: SimulatedRoot, at: datetime, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "other", at=at)
    forger = with_ca(root, issuer=other.root, at=at)
    document = said(SimulatedCollateral(tee="sgx", at=at), forger)
    assert refused(document, root, at).code == "certificate-signature"


def test_a_list_by_a_ca_whose_certificate_has_expired_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    old = with_ca(root, issuer=root.root, at=at - timedelta(days=21 * 365))
    document = said(SimulatedCollateral(tee="sgx", at=at), old)
    assert refused(document, root, at).code == "certificate-expired"


def test_a_list_by_a_ca_that_the_root_has_revoked_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    serial = root.ca.certificate.serial_number
    document = said(
        SimulatedCollateral(tee="sgx", at=at, revoked_by_root=(serial,)), root
    )
    assert refused(document, root, at).code == "certificate-revoked"


def test_documents_by_a_signer_that_the_root_has_revoked_are_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    serial = root.signing.certificate.serial_number
    document = said(
        SimulatedCollateral(tee="sgx", at=at, revoked_by_root=(serial,)), root
    )
    error = refused(document, root, at)
    assert (error.code, error.step) == ("certificate-revoked", 4)
