"""The certificate a custodian shows: its TLS key, signed by the party's own key.

A custodian has no evidence. What makes it the party's is the party's Ed25519 key, which
the plan names: it signs a leaf for a fresh P-256 key, which never leaves the memory of
the custodian's process. The node verifies the leaf and pins it as its channel's only
root; there is no CA. The leaf's key signs no other certificate: gRPC does not look at
CA:FALSE of what it pins, but at the key usage.

The layout is fixed: issuer ``party NAME``, subject ``custodian of NAME``, and the
extensions of `_extensions`, in that order and with no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import (
    ExtendedKeyUsageOID,
    NameOID,
    SignatureAlgorithmOID,
)

from cloister.errors import VerificationError
from cloister.ratls.certificate import (
    BACKDATED,
    CLOCK_TOLERANCE,
    MAX_CERTIFICATE_BYTES,
    SERVER_NAME,
    SIGNATURES_ONLY,
    UNREADABLE,
)
from cloister.ratls.identity import Spki, parse_spki, spki_of


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodianCertificate:
    """A certificate that the party's key signed for its custodian.

    Attributes:
        der: The certificate, to be pinned.
        spki: The custodian's TLS key.
    """

    der: bytes
    spki: Spki


def make_custodian_certificate(
    party: str,
    party_key: Ed25519PrivateKey,
    tls_key: ec.EllipticCurvePrivateKey,
    *,
    at: datetime,
    life: timedelta,
) -> bytes:
    """Returns a DER certificate for the custodian's TLS key."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(_subject(party))
        .issuer_name(_issuer(party))
        .public_key(tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + life)
    )
    for value, critical in _extensions():
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(party_key, None).public_bytes(Encoding.DER)


def verify_custodian_certificate(
    unverified_der: bytes, *, party: str, party_key: Ed25519PublicKey, at: datetime
) -> CustodianCertificate:
    """Returns the certificate of the party's custodian, verified.

    Steps: (1) size and X.509 form; (2) the party's key signed it; (3) it is for this
    party's custodian; (4) valid at `at`; (5) for a P-256 key in its one encoding; (6)
    an end entity for server authentication only, with exactly our extensions. The
    caller pins it, and lets the custodian prove that it holds the party's key now.

    Args:
        unverified_der: What a server showed.
        party: The node's own party.
        party_key: Its key from the plan.
        at: The node's time.

    Raises:
        VerificationError: If any step fails.
    """
    # Step 1: form
    if len(unverified_der) > MAX_CERTIFICATE_BYTES:
        raise _refuse(party, "size", f"at most {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = x509.load_der_x509_certificate(unverified_der)
        extensions = tuple((it.value, it.critical) for it in certificate.extensions)
        names = (certificate.issuer, certificate.subject)
        key = certificate.public_key()
    except (*UNREADABLE, TypeError) as error:  # TypeError: a name of an odd kind
        raise _refuse(party, "malformed", "an X.509 certificate", str(error)) from error
    # Step 2: who signed
    _check_signature(certificate, party, party_key)
    # The library does not look at the signature's count of unused bits.
    if not unverified_der.endswith(b"\0" + certificate.signature):
        raise _refuse(party, "malformed", "a signature of whole bytes")
    # Step 3: for whom
    if names != (_issuer(party), _subject(party)):
        raise _refuse(
            party,
            "name",
            _show(_issuer(party), _subject(party)),
            _show(*names),
        )
    # Step 4: validity
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins - CLOCK_TOLERANCE <= at <= ends:
        raise _refuse(
            party,
            "expired" if at > ends else "not-yet-valid",
            f"validity at {at:%Y-%m-%d %H:%M:%SZ}",
            f"{begins:%Y-%m-%d %H:%M:%SZ} to {ends:%Y-%m-%d %H:%M:%SZ}",
        )
    # Step 5: key
    spki = _key_in(certificate.tbs_certificate_bytes, key, party)
    # Step 6: role
    if extensions != _extensions():
        raise _refuse(party, "role", "an end entity for server authentication alone")
    return CustodianCertificate(der=unverified_der, spki=spki)


def _extensions() -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """Every extension and whether it is critical."""
    return (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True),
        (SIGNATURES_ONLY, True),
        (x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), False),
    )


def _check_signature(
    certificate: x509.Certificate, party: str, party_key: Ed25519PublicKey
) -> None:
    try:
        party_key.verify(certificate.signature, certificate.tbs_certificate_bytes)
    except InvalidSignature as error:
        raise _refuse(
            party,
            "signature",
            "a signature by the party's key in the plan",
            "another one",
            remedy="Is the address in [custodian] that of this party's custodian?",
        ) from error
    # Also said outside of what is signed.
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ED25519:
        raise _refuse(party, "malformed", "Ed25519 by name")


def _key_in(signed_bytes: bytes, key: CertificatePublicKeyTypes, party: str) -> Spki:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refuse(party, "key", "a P-256 key", type(key).__name__)
    spki = spki_of(key)
    try:
        parse_spki(spki)
    except VerificationError as error:
        raise _refuse(party, "key", "a P-256 key", key.curve.name) from error
    # The library also reads a compressed point; that would be a second form.
    if bytes(spki) not in signed_bytes:
        raise _refuse(party, "key", "an uncompressed point", "another encoding")
    return spki


def _issuer(party: str) -> x509.Name:
    return _name(f"party {party}")


def _subject(party: str) -> x509.Name:
    return _name(f"custodian of {party}")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _show(issuer: x509.Name, subject: x509.Name) -> str:
    return f"issuer {issuer.rfc4514_string()}, subject {subject.rfc4514_string()}"


def _refuse(
    party: str, code: str, expected: str, got: str = "", *, remedy: str = ""
) -> VerificationError:
    return VerificationError(
        f"the certificate of the custodian of {party!r} is refused",
        code=f"custodian-certificate-{code}",
        expected=expected,
        got=got,
        remedy=remedy,
    )
