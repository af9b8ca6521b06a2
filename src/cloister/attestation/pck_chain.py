"""Step 2 of verification: the PCK certificate, up to the root the caller trusts.

Follows Intel's quote verification library (PckCertVerifier), which tells the three
certificates apart by phrases in their common names; what it leaves out and is checked
here is the start of validity.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cloister.attestation.certificates import Certificate, parse_certificate
from cloister.attestation.pck_extension import PckExtension, parse_pck_extension
from cloister.attestation.pem import split_pem_chain
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError

ROOT_PHRASE = "SGX Root CA"
CA_PHRASE = "CA"
PCK_PHRASE = "SGX PCK Certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PckChain:
    """A PCK certificate that is genuine; made by `verified_pck_chain` and nowhere else.

    Attributes:
        leaf: The PCK certificate.
        ca: The CA that issued it.
        anchor: The trusted root.
        platform: The platform it was issued to.
        not_after: When the first of the three certificates expires, aware.
    """

    leaf: Certificate
    ca: Certificate
    anchor: Certificate
    platform: PckExtension
    not_after: datetime


def verified_pck_chain(
    unverified_pem: bytes, *, root: TrustRoot, at: datetime
) -> PckChain:
    """Returns the PCK certificate, if it is genuine under `root` at `at`.

    (2.1) Exactly leaf, CA and root.
    (2.2) The root is the trusted one, byte for byte.
    (2.3) Each has the name and the role of its place.
    (2.4) Root signed by itself, CA by root, leaf by CA, names agreeing.
    (2.5) All three are valid at this time, both ends.
    (2.6) The leaf names its platform in Intel's SGX extension.

    Whether one is revoked is step 3.

    Args:
        unverified_pem: The chain as the quote carries it.
        root: The one root that is accepted.
        at: The time to verify for, aware.

    Raises:
        VerificationError: If any of it fails (step 2).
    """
    # (2.1) Three certificates.
    leaf_der, ca_der, root_der = split_pem_chain(unverified_pem, step=2)
    # (2.2) The root in the quote serves only to be equal: trust comes from the caller.
    check_trusted_root(root_der, what="evidence", root=root, step=2)
    anchor = parse_certificate(root_der, step=2)
    ca = parse_certificate(ca_der, step=2)
    leaf = parse_certificate(leaf_der, step=2)
    # (2.3) Names and roles.
    for certificate, phrase in (
        (anchor, ROOT_PHRASE),
        (ca, CA_PHRASE),
        (leaf, PCK_PHRASE),
    ):
        certificate.check_named(phrase, step=2)
    leaf.check_end_entity(step=2)
    _require_between(ca, anchor)
    # (2.4) Signatures, by issuers that may issue.
    anchor.check_issued_by(anchor, step=2)
    ca.check_issued_by(anchor, step=2)
    leaf.check_issued_by(ca, step=2)
    # (2.5) Validity.
    for certificate in (anchor, ca, leaf):
        certificate.check_valid_at(at, step=2)
    # (2.6) The platform.
    if leaf.body.sgx_extension is None:
        raise VerificationError(
            "PCK certificate does not name its platform",
            code="pck-extension",
            expected="Intel's SGX extension",
            step=2,
        )
    return PckChain(
        leaf=leaf,
        ca=ca,
        anchor=anchor,
        platform=parse_pck_extension(leaf.body.sgx_extension),
        not_after=min(it.not_after for it in (anchor, ca, leaf)),
    )


def check_trusted_root(
    unverified_der: bytes, *, what: str, root: TrustRoot, step: int
) -> None:
    """Checks that the root of a chain is the trusted one, byte for byte.

    Args:
        unverified_der: The root as the chain carries it.
        what: What hangs from it, for the error.
        root: The one root that is accepted.
        step: Number of the verification step it is checked for.

    Raises:
        VerificationError: If it is another one.
    """
    if unverified_der != root.der:
        raise VerificationError(
            f"{what} hangs from another root",
            code="root-untrusted",
            expected=root.name,
            got=f"sha256:{hashlib.sha256(unverified_der).hexdigest()}",
            remedy="the peer belongs to another deployment, or its hardware is "
            "simulated where yours is not",
            step=step,
        )


def _require_between(ca: Certificate, anchor: Certificate) -> None:
    """The root issues no PCK itself, though its own name holds the CA's phrase too."""
    if ca.body.subject == anchor.body.subject:
        raise VerificationError(
            "the root stands in its CA's place",
            code="certificate-name",
            expected="a CA between PCK and root",
            got=f"'{ca.common_name}'",
            step=2,
        )
