"""Step 4, end to end: who may say what is up to date."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.attestation.differential import end_entity
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.platforms.simulated import issuing
from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.quotes import (
    SGX_V3,
    TD_10_V4,
    QuoteForm,
    raw_signature,
)
from cloister.attestation.platforms.simulated.root import create_simulated_root
from cloister.attestation.platforms.simulated.scenario import SimulatedCase

DOCUMENTS = ("tcb_info", "qe_identity")
CODES = {"tcb_info": "tcb-info", "qe_identity": "qe-identity"}


@pytest.fixture(params=(SGX_V3, TD_10_V4), ids=["sgx", "tdx"])
def case(request: pytest.FixtureRequest, judge: Judge) -> SimulatedCase:
    form: QuoteForm = request.param
    return judge.scenario(form).build(judge.root)


def signed_by(
    judge: Judge, case: SimulatedCase, name: str, signer: Issuer
) -> SimulatedCase:
    """Signs one document with another certificate, directly under the root."""
    signature = raw_signature(signer.key, case.collateral[name].encode())
    return judge.with_collateral(
        case,
        **{
            f"{name}_signature": signature.hex(),
            f"{name}_issuer_chain": (signer.pem + judge.root.root.pem).decode(),
        },
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_pck_cannot_sign_collateral(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    forged = signed_by(judge, case, name, case.pck)
    assert judge.refused(forged) == ("certificate-name", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("common_name", ["x", issuing.PCK_NAME, issuing.CA_NAME])
def test_no_other_end_entity_of_the_root_can_sign_collateral(
    judge: Judge, case: SimulatedCase, name: str, common_name: str
) -> None:
    signer = end_entity(judge, name=common_name, issuer=judge.root.root)
    forged = signed_by(judge, case, name, signer)
    assert judge.refused(forged) == ("certificate-name", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_signer_of_the_right_name_under_the_ca_is_refused(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    signer = end_entity(judge, name=issuing.SIGNING_NAME, issuer=judge.root.ca)
    forged = signed_by(judge, case, name, signer)
    assert judge.refused(forged) == ("certificate-issuer", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_authority_cannot_sign_collateral(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    for signer in (judge.root.root, judge.root.ca):
        forged = signed_by(judge, case, name, signer)
        assert judge.refused(forged) == ("certificate-name", 4)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = issuing._builder(
        issuing._name(issuing.SIGNING_NAME),
        key.public_key(),
        at=judge.at,
        life=timedelta(days=1),
    )
    authority = issuing._issue(
        issuing._authority(builder, path_length=0), judge.root.root, "https://x.invalid"
    )
    forged = signed_by(judge, case, name, Issuer(certificate=authority, key=key))
    assert judge.refused(forged) == ("certificate-role", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_another_deployments_signer_is_refused(
    judge: Judge, case: SimulatedCase, name: str, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "root", at=judge.at)
    # Under its own root, and passed off as one of ours.
    forged = signed_by(judge, case, name, other.signing)
    assert judge.refused(forged) == ("certificate-signature", 4)
    chain = (other.signing.pem + other.root.pem).decode()
    foreign = judge.with_collateral(forged, **{f"{name}_issuer_chain": chain})
    assert judge.refused(foreign) == ("root-untrusted", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_signer_out_of_its_time_is_refused(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for away, code in (
        (timedelta(days=1), "certificate-not-yet-valid"),
        (-timedelta(days=8 * 365), "certificate-expired"),
    ):
        certificate = issuing.issue_tcb_signing(
            key.public_key(), root=judge.root.root, at=judge.at + away
        )
        forged = signed_by(judge, case, name, Issuer(certificate=certificate, key=key))
        assert judge.refused(forged) == (code, 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_second_signing_certificate_is_as_good(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = issuing.issue_tcb_signing(
        key.public_key(), root=judge.root.root, at=judge.at
    )
    made = signed_by(judge, case, name, Issuer(certificate=certificate, key=key))
    assert judge.claims(made).tcb_status == "UpToDate"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_under_anothers_signature_is_refused(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    signatures = {other: case.collateral[f"{other}_signature"] for other in DOCUMENTS}
    swapped = signatures["qe_identity" if name == "tcb_info" else "tcb_info"]
    for signature in (swapped, "00" * 64, "ff" * 64, "00" * 63 + "01"):
        forged = judge.with_collateral(case, **{f"{name}_signature": signature})
        assert judge.refused(forged) == (f"{CODES[name]}-signature", 4)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_same_fields_in_another_spelling_are_refused(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    text = case.collateral[name]
    for other in (
        json.dumps(json.loads(text)),
        json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")),
        text + " ",
        text.replace('"id"', '"\\u0069d"'),
        text[:-1] + ',"more":1}',
    ):
        forged = judge.with_collateral(
            case,
            **{
                name: other,
                f"{name}_signature": case.collateral[f"{name}_signature"],
            },
        )
        assert judge.refused(forged) == (f"{CODES[name]}-signature", 4)
        again = judge.with_collateral(case, **{name: other})
        assert judge.claims(again).tcb_status == "UpToDate"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_out_of_its_time_is_refused(
    judge: Judge, case: SimulatedCase, name: str
) -> None:
    tee = "sgx" if '"SGX"' in case.collateral["tcb_info"] else "tdx"
    for away, code in (
        (timedelta(seconds=1), "not-yet-valid"),
        (-timedelta(days=30, seconds=1), "expired"),
    ):
        content = SimulatedCollateral(
            tee="sgx" if tee == "sgx" else "tdx", at=judge.at + away
        )
        made = getattr(content, name)()
        forged = judge.with_collateral(case, **{name: json.dumps(made)})
        assert judge.refused(forged) == (f"{CODES[name]}-{code}", 4)


def test_both_ends_of_a_documents_time_are_within_it(judge: Judge) -> None:
    content = SimulatedCollateral(tee="sgx", at=judge.at, life=timedelta(days=9))
    made = judge.scenario(SGX_V3, collateral=content).build(judge.root)
    for when in (judge.at, judge.at + timedelta(days=9)):
        claims = judge.claims(made, at=when)
        assert claims.not_after == judge.at + timedelta(days=9)


def test_both_evaluation_numbers_are_reported_and_the_smaller_counts(
    judge: Judge,
) -> None:
    for numbers in ((17, 19), (19, 17)):
        content = SimulatedCollateral(
            tee="tdx",
            at=judge.at,
            tcb_info_number=numbers[0],
            qe_identity_number=numbers[1],
        )
        made = judge.scenario(TD_10_V4, collateral=content).build(judge.root)
        claims = judge.claims(made)
        assert claims.tcb_evaluation_number == 17
        assert claims.tcb_info_evaluation_number == numbers[0]
        assert claims.qe_identity_evaluation_number == numbers[1]


def test_collateral_of_the_other_tee_is_refused(judge: Judge) -> None:
    made = {
        form.tee: judge.scenario(form).build(judge.root) for form in (SGX_V3, TD_10_V4)
    }
    for tee, other in (("sgx", "tdx"), ("tdx", "sgx")):
        foreign = made["tdx" if other == "tdx" else "sgx"].collateral
        mine = made["tdx" if tee == "tdx" else "sgx"]
        assert judge.refused(dataclasses.replace(mine, collateral=foreign)) == (
            "tcb-info-tee",
            5,
        )
        mixed = judge.with_collateral(
            mine, **{name: foreign[name] for name in foreign if name.startswith("qe_")}
        )
        assert judge.refused(mixed) == ("qe-identity-id", 8)
