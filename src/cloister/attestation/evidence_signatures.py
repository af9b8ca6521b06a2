"""The part of verification that needs no collateral: steps 2, 7 and 9, and who signed.

A source of collateral may ask a service on the network, and others wait meanwhile. So
what a quote says of its platform is believed only so far that it is asked about: some
genuine platform did sign this very quote. Verification relies on none of it, and does
these steps again in its own order.
"""

from __future__ import annotations

from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.evidence import Evidence
from cloister.attestation.pck_chain import PckChain, verified_pck_chain
from cloister.attestation.quoting_enclave import check_qe_report
from cloister.attestation.signatures import check_signature
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError


def verified_signatures(
    evidence: Evidence, *, root: TrustRoot, at: datetime
) -> PckChain:
    """Returns the chain of the platform that signed the evidence.

    Steps, by their numbers in `verify`: (2) the PCK chain leads to the root; (7) the
    PCK signed the QE report, which binds the attestation key; (9) that key signed the
    quote. Nothing is known of revocation, nor of how current the platform is.

    Args:
        evidence: A parsed quote.
        root: The one root that is accepted.
        at: The time to verify for, aware.

    Raises:
        VerificationError: If any step fails.
    """
    # (2) PCK chain to the trusted root.
    chain = verified_pck_chain(evidence.pck_chain_pem, root=root, at=at)
    # (7) QE report: signed by the PCK, binding the attestation key.
    check_qe_report(evidence, pck=chain.leaf)
    # (9) Quote signature by the attestation key.
    check_quote_signature(evidence)
    return chain


def check_quote_signature(evidence: Evidence) -> None:
    """Checks that the attestation key signed header and body.

    Args:
        evidence: A parsed quote; that the key is the platform's is step 7.

    Raises:
        VerificationError: If it did not (step 9).
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + evidence.attestation_key
        )
    except ValueError as error:
        raise VerificationError(
            "attestation key is no point of P-256", code="attestation-key", step=9
        ) from error
    check_signature(
        key,
        signature=evidence.signature,
        signed=evidence.signed_bytes,
        what="quote is not signed by its attestation key",
        code="quote-signature",
        step=9,
    )
