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
        platform: The platform it was issued to.
        not_after: When the first of the three certificates expires, aware.
    """

    leaf: Certificate
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

    Whether one is revoked is step 3, which is not done yet.

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
    if root_der != root.der:
        raise VerificationError(
            "evidence hangs from another root",
            code="root-untrusted",
            expected=root.name,
            got=f"sha256:{hashlib.sha256(root_der).hexdigest()}",
            remedy="the peer belongs to another deployment, or its hardware is "
            "simulated where yours is not",
            step=2,
        )
    anchor = parse_certificate(root_der, step=2)
    ca = parse_certificate(ca_der, step=2)
    leaf = parse_certificate(leaf_der, step=2)
    # (2.3) Names and roles.
    for certificate, phrase in (
        (anchor, ROOT_PHRASE),
        (ca, CA_PHRASE),
        (leaf, PCK_PHRASE),
    ):
        _require_phrase(certificate, phrase)
    _require_end_entity(leaf)
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
        platform=parse_pck_extension(leaf.body.sgx_extension),
        not_after=min(it.not_after for it in (anchor, ca, leaf)),
    )


def _require_phrase(certificate: Certificate, phrase: str) -> None:
    """Each certificate has its own part to play, and its name says which.

    Without this a PCK issued by the root itself, or a TCB signing certificate in a
    PCK's place, would pass: their signatures are good.
    """
    if phrase not in certificate.common_name:
        raise VerificationError(
            "certificate stands in another one's place",
            code="certificate-name",
            expected=f"a common name with '{phrase}'",
            got=f"'{certificate.common_name}'",
            step=2,
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


def _require_end_entity(leaf: Certificate) -> None:
    if leaf.body.is_ca or leaf.body.signs_certificates or not leaf.body.signs_data:
        raise VerificationError(
            "PCK certificate has another role",
            code="certificate-role",
            expected="no CA, and KeyUsage digitalSignature without keyCertSign",
            step=2,
        )
