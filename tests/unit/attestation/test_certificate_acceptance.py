from __future__ import annotations

import hashlib

import msgspec
import pytest
from tests.unit.attestation.example_policies import (
    FULL,
    OPEN,
    SIMULATED,
    STRICT,
    sgx_config,
    tdx_config,
)
from tests.unit.attestation.test_certificate_evidence import (
    CERTIFICATES,
    HONEST,
    QUOTE,
    SPKI,
    bare_certificate,
    evidence_of,
    key_claims,
    parsed_with_one_bit_flipped,
    tagged,
)

from cloister.attestation.certificate_acceptance import accepted_evidence
from cloister.attestation.certificate_evidence import (
    EVIDENCE_OID,
    LEGACY_EVIDENCE_OID,
    CertificateEvidence,
    LegacyCertificate,
    parse_certificate_evidence,
)
from cloister.attestation.der import encode_oid
from cloister.attestation.dynamic_config import parse_dynamic_config
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pem import split_pem
from cloister.attestation.policy_schema import Policy
from cloister.errors import VerificationError

LEGACY = LegacyCertificate(spki=SPKI, unaccepted_quote=QUOTE)
ASKING = msgspec.structs.replace(STRICT, legacy_certificates="accepted")
REFUSING = msgspec.structs.replace(OPEN, legacy_certificates="refused")
# A policy that opens everything else does not open this.
NOT_ASKING = [None, STRICT, REFUSING]


def refused(
    unaccepted: CertificateEvidence | LegacyCertificate, policy: Policy | None
) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        accepted_evidence(unaccepted, policy)
    assert refusal.value.code == "certificate-legacy"
    assert refusal.value.step == 1
    return refusal.value


@pytest.mark.parametrize("policy", [*NOT_ASKING, ASKING])
def test_interoperable_evidence_counts_whatever_a_policy_says_of_legacy(
    policy: Policy | None,
) -> None:
    found = evidence_of(HONEST)
    assert accepted_evidence(found, policy) is found


@pytest.mark.parametrize("policy", NOT_ASKING)
def test_a_legacy_certificate_is_refused_unasked(policy: Policy | None) -> None:
    refusal = refused(LEGACY, policy)
    assert 'legacy_certificates = "accepted"' in refusal.expected
    assert refusal.got == (
        "no policy" if policy is None else 'legacy_certificates = "refused"'
    )


@pytest.mark.parametrize("config", [sgx_config("mr_enclave"), tdx_config()])
def test_the_references_file_never_accepts_a_legacy_certificate(
    config: dict[str, object],
) -> None:
    policy = parse_dynamic_config(msgspec.json.encode(config), root=SIMULATED)
    refused(LEGACY, policy)


def test_a_legacy_certificate_that_is_asked_for_is_bound_to_its_key() -> None:
    found = accepted_evidence(LEGACY, ASKING)
    assert found.spki == SPKI
    assert found.unverified_quote == QUOTE
    assert found.expected_report_data == hashlib.sha256(SPKI).digest() + bytes(32)
    found.check_bound(found.expected_report_data)
    # A quote over claims that name the key is another one, and not taken for it.
    for report_data in (bytes(64), evidence_of(HONEST).expected_report_data):
        with pytest.raises(VerificationError) as refusal:
            found.check_bound(report_data)
        assert refusal.value.code == "certificate-binding"


def test_no_flipped_bit_makes_a_legacy_certificate_count_or_bind_another_key() -> None:
    legacy = bare_certificate({LEGACY_EVIDENCE_OID: QUOTE})
    both = bare_certificate(
        {EVIDENCE_OID: tagged(key_claims()), LEGACY_EVIDENCE_OID: QUOTE}
    )
    bound = accepted_evidence(LEGACY, ASKING).expected_report_data
    for found in parsed_with_one_bit_flipped(legacy):
        refused(found, STRICT)
        asked_for = accepted_evidence(found, ASKING)
        assert (asked_for.expected_report_data == bound) == (asked_for.spki == SPKI)
    for found in parsed_with_one_bit_flipped(both):
        if isinstance(found, LegacyCertificate):
            refused(found, STRICT)


def test_a_real_certificate_that_lost_its_evidence_is_refused_unasked() -> None:
    # Without that folder this checks nothing and passes.
    for path in sorted(CERTIFICATES.glob("gramine-cert.pem")):
        (der,) = split_pem(path.read_bytes(), names=("certificate",), step=1)
        stripped = parse_certificate_evidence(
            der.replace(encode_oid(EVIDENCE_OID), encode_oid("2.23.133.5.4.8"))
        )
        for policy in (None, STRICT, REFUSING):
            refused(stripped, policy)
        evidence = accepted_evidence(stripped, FULL)
        quote = parse_evidence(evidence.unverified_quote)
        evidence.check_bound(quote.report.report_data)
