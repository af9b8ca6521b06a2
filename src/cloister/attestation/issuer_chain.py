"""Who signed a piece of collateral: a certificate and the root. Parsed, NOT verified.

PCS sends such a chain with every answer, in a header. The root in it serves only to be
equal to the one that the caller trusts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cloister.attestation.certificates import Certificate, parse_certificate
from cloister.attestation.pem import split_pem


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerChain:
    """A signer's certificate with the root above it, read whole and not verified.

    Attributes:
        pem: The chain's exact bytes.
        issuer: The signer.
        root_der: The root, as it stands there.
    """

    pem: bytes = field(repr=False)
    issuer: Certificate
    root_der: bytes = field(repr=False)


def parse_issuer_chain(unverified_pem: bytes, *, step: int) -> IssuerChain:
    """Returns a signer and its root; believes neither.

    Args:
        unverified_pem: Signer and root.
        step: Number of the verification step it is read for.

    Raises:
        VerificationError: If there are not exactly two certificates in strict PEM, or
            the signer's is malformed (at `step`).
    """
    issuer_der, root_der = split_pem(
        unverified_pem, names=("signer", "root"), step=step
    )
    return IssuerChain(
        pem=unverified_pem,
        issuer=parse_certificate(issuer_der, step=step),
        root_der=root_der,
    )
