"""Step 3, end to end: what is revoked, and lists that do not say so."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.attestation.differential import end_entity
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.platforms.simulated import issuing
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_LIFE,
    SimulatedCollateral,
)
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.quotes import SGX_V3, TD_10_V4, QuoteForm
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.attestation.platforms.simulated.scenario import Revocable, SimulatedCase

FORMS = (SGX_V3, TD_10_V4)


def crl(issuer: Issuer, at: datetime, *, key: Issuer | None = None) -> str:
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(at)
        .next_update(at + timedelta(days=30))
        .add_extension(x509.CRLNumber(1), critical=False)
        .sign((key or issuer).key, SHA256())
    )
    return made.public_bytes(Encoding.DER).hex()


@pytest.fixture(params=FORMS, ids=["sgx", "tdx"])
def case(request: pytest.FixtureRequest, judge: Judge) -> SimulatedCase:
    form: QuoteForm = request.param
    return judge.scenario(form).build(judge.root)


@pytest.mark.parametrize("form", FORMS, ids=["sgx", "tdx"])
@pytest.mark.parametrize(
    ("revoked", "step"), [("root", 3), ("ca", 3), ("pck", 3), ("signing", 4)]
)
def test_whatever_is_revoked_is_refused(
    judge: Judge, form: QuoteForm, revoked: Revocable, step: int
) -> None:
    scenario = dataclasses.replace(judge.scenario(form), revoked=frozenset({revoked}))
    assert judge.refused(scenario.build(judge.root)) == ("certificate-revoked", step)


def test_a_platform_beside_a_revoked_one_is_accepted(judge: Judge) -> None:
    other = judge.scenario(SGX_V3).build(judge.root)
    collateral = SimulatedCollateral(
        tee="sgx", at=judge.at, revoked_by_ca=(other.pck.certificate.serial_number,)
    )
    made = judge.scenario(SGX_V3, collateral=collateral).build(judge.root)
    assert judge.claims(made).tcb_status == "UpToDate"
    caught = dataclasses.replace(other, collateral=made.collateral)
    assert judge.refused(caught) == ("certificate-revoked", 3)


def test_lists_of_another_deployment_are_refused(
    judge: Judge, case: SimulatedCase, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "root", at=judge.at)
    for name, issuer in (("root_ca_crl", other.root), ("pck_crl", other.ca)):
        forged = judge.with_collateral(case, **{name: crl(issuer, judge.at)})
        assert judge.refused(forged) == ("crl-signature", 3)


def test_the_two_lists_cannot_change_places(judge: Judge, case: SimulatedCase) -> None:
    root_ca_crl, pck_crl = case.collateral["root_ca_crl"], case.collateral["pck_crl"]
    for changed in (
        {"root_ca_crl": pck_crl},
        {"pck_crl": root_ca_crl},
        {"root_ca_crl": pck_crl, "pck_crl": root_ca_crl},
    ):
        assert judge.refused(judge.with_collateral(case, **changed)) == (
            "crl-issuer",
            3,
        )


def test_a_list_signed_by_a_pck_is_refused(judge: Judge, case: SimulatedCase) -> None:
    forged = crl(judge.root.ca, judge.at, key=case.pck)
    assert judge.refused(judge.with_collateral(case, pck_crl=forged)) == (
        "crl-signature",
        3,
    )


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl"])
def test_an_old_list_is_refused_though_all_else_is_new(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    issuer = judge.root.root if name == "root_ca_crl" else judge.root.ca
    for away, code in (
        (-timedelta(days=31), "crl-expired"),
        (timedelta(days=1), "crl-not-yet-valid"),
    ):
        old = judge.with_collateral(case, **{name: crl(issuer, judge.at + away)})
        assert judge.refused(old) == (code, 3)


def test_evidence_ends_with_the_first_list(judge: Judge, case: SimulatedCase) -> None:
    older = judge.with_collateral(
        case, pck_crl=crl(judge.root.ca, judge.at - timedelta(days=10))
    )
    assert judge.claims(older).not_after == judge.at + timedelta(days=20)
    assert judge.claims(case).not_after == judge.at + COLLATERAL_LIFE


def test_another_authoritys_certificate_beside_the_list_is_refused(
    judge: Judge, case: SimulatedCase, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "root", at=judge.at)
    for issuer in (other.ca, judge.root.signing, judge.root.root, case.pck):
        chain = (issuer.pem + judge.root.root.pem).decode()
        forged = judge.with_collateral(case, pck_crl_issuer_chain=chain)
        assert judge.refused(forged) == ("crl-issuer", 3)
    foreign = (judge.root.ca.pem + other.root.pem).decode()
    forged = judge.with_collateral(case, pck_crl_issuer_chain=foreign)
    assert judge.refused(forged) == ("root-untrusted", 3)


def test_the_authoritys_certificate_may_have_been_issued_anew(
    judge: Judge, case: SimulatedCase
) -> None:
    root = judge.root
    renewed = issuing.issue_platform_ca(
        root.ca.key.public_key(), root=root.root, at=judge.at
    )
    assert renewed != root.ca.certificate
    issuer = Issuer(certificate=renewed, key=root.ca.key)
    chain = (issuer.pem + root.root.pem).decode()
    made = judge.with_collateral(case, pck_crl_issuer_chain=chain)
    assert judge.claims(made).tcb_status == "UpToDate"


def test_the_authoritys_other_certificate_must_be_as_good(
    judge: Judge, case: SimulatedCase
) -> None:
    root = judge.root
    early = issuing.issue_platform_ca(
        root.ca.key.public_key(), root=root.root, at=judge.at + timedelta(days=1)
    )
    own_root = Issuer(
        certificate=root.root.certificate, key=ec.generate_private_key(ec.SECP256R1())
    )
    forged = issuing.issue_platform_ca(
        root.ca.key.public_key(), root=own_root, at=judge.at
    )
    for certificate, code in (
        (early, "certificate-not-yet-valid"),
        (forged, "certificate-signature"),
    ):
        issuer = Issuer(certificate=certificate, key=root.ca.key)
        chain = (issuer.pem + root.root.pem).decode()
        made = judge.with_collateral(case, pck_crl_issuer_chain=chain)
        assert judge.refused(made) == (code, 3)


def test_a_revoked_other_certificate_of_the_authority_is_refused(judge: Judge) -> None:
    root = judge.root
    renewed = issuing.issue_platform_ca(
        root.ca.key.public_key(), root=root.root, at=judge.at
    )
    collateral = SimulatedCollateral(
        tee="sgx", at=judge.at, revoked_by_root=(renewed.serial_number,)
    )
    made = judge.scenario(SGX_V3, collateral=collateral).build(root)
    chain = Issuer(certificate=renewed, key=root.ca.key).pem + root.root.pem
    forged = judge.with_collateral(made, pck_crl_issuer_chain=chain.decode())
    assert judge.refused(forged) == ("certificate-revoked", 3)


def test_an_end_entity_under_the_authoritys_name_is_refused(
    judge: Judge, case: SimulatedCase
) -> None:
    named = end_entity(judge, name=issuing.CA_NAME, issuer=judge.root.root)
    chain = (named.pem + judge.root.root.pem).decode()
    forged = judge.with_collateral(case, pck_crl_issuer_chain=chain)
    assert judge.refused(forged) == ("crl-issuer", 3)
