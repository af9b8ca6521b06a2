"""Which certificate's quote may be verified at all; a legacy one only where asked for.

Gramine before 1.8 put a bare quote over the key into its certificates and nothing else.
Such a quote holds no claims, so nobody can put a nonce into it, and it stands under an
identifier that was encoded wrongly. Gramine's own verifier takes it whenever the newer
extension is not there, so whoever strips that one chooses the weaker check.
"""

from __future__ import annotations

from cloister.attestation.certificate_evidence import (
    EVIDENCE_OID,
    CertificateEvidence,
    LegacyCertificate,
    report_data_over,
)
from cloister.attestation.policy_schema import Policy
from cloister.errors import VerificationError


def accepted_evidence(
    unaccepted: CertificateEvidence | LegacyCertificate, policy: Policy | None
) -> CertificateEvidence:
    """Returns the quote that a certificate may be judged by; believes nothing of it.

    Checks, as part of step 1 of verification:

    1. the certificate follows Interoperable RA-TLS, or
    2. the policy says that legacy certificates are accepted.

    Args:
        unaccepted: A certificate as it was read.
        policy: What the certificate is wanted for; None asks for nothing, and so for no
            legacy certificates.

    Raises:
        VerificationError: If it is a legacy certificate and the policy does not accept
            such ones (step 1).
    """
    if isinstance(unaccepted, CertificateEvidence):
        return unaccepted
    if policy is None or policy.legacy_certificates != "accepted":
        raise VerificationError(
            "the certificate holds nothing but a legacy quote, without claims",
            code="certificate-legacy",
            expected=f"evidence in extension {EVIDENCE_OID}, or a policy with "
            'legacy_certificates = "accepted"',
            got="no policy"
            if policy is None
            else f'legacy_certificates = "{policy.legacy_certificates}"',
            remedy="Gramine from 1.8 on writes both; have the peer updated",
            step=1,
        )
    return CertificateEvidence(
        spki=unaccepted.spki,
        unverified_quote=unaccepted.unaccepted_quote,
        expected_report_data=report_data_over(unaccepted.spki),
    )
