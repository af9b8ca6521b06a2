"""Self-signed certificates that carry evidence for their own key.

Layout: Interoperable RA-TLS, as Gramine writes it. Extension 2.23.133.5.4.9 (not
critical) holds CBOR tag 60000 ([quote, claims]); `claims` is a CBOR map whose
``pubkey-hash`` names the SHA-256 of the SubjectPublicKeyInfo, and the quote's report
data is SHA-256(claims) followed by 32 zero bytes.

Such evidence was made before the connection and can be replayed for the life of the
key, so it decides only with whom to speak; admission rests on `challenge.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.attestation.platforms import Platform
from cloister.errors import VerificationError
from cloister.ratls.identity import NodeIdentity, Spki, parse_spki, spki_of

EVIDENCE_OID = x509.ObjectIdentifier("2.23.133.5.4.9")
EVIDENCE_TAG = 60000  # quote
SHA256_ALGORITHM = 1  # IANA named information registry
SERVER_NAME = "server.cloister.invalid"

# A quote with its chain is 5 to 10 kB; more than this is not a node's certificate.
MAX_CERTIFICATE_BYTES = 32 * 1024
# Host clocks differ; a certificate made "now" must be valid for a peer a little behind.
CLOCK_TOLERANCE = timedelta(minutes=10)
# How long before it is made a certificate begins. The peer's TLS library compares it
# with the host's clock, which a node's own time does not correct, so a clock that is
# hours behind must not keep a node out. It gives nobody anything: who may do what is
# judged by warrants and evidence, in the node's own time.
BACKDATED = timedelta(days=1)
# gRPC does not look at basic constraints of what it pins: a pinned leaf without this
# would vouch for every certificate that its key signs. TLS 1.3 needs nothing else.
SIGNATURES_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
# Whatever else a certificate says, another reader might go by it.
_KNOWN = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.ExtendedKeyUsage.oid,
        x509.KeyUsage.oid,
        x509.SubjectAlternativeName.oid,
        EVIDENCE_OID,
    }
)
_ZEROS = bytes(32)
# What pyca/cryptography raises for certificates it cannot or will not read.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceCertificate:
    """What a peer's certificate holds; the quote in it is not yet verified.

    Attributes:
        der: The certificate itself.
        spki: The key it is for.
        unverified_quote: The quote it carries.
        expected_report_data: What the quote's report data must be for this key.
    """

    der: bytes
    spki: Spki
    unverified_quote: bytes
    expected_report_data: bytes


def make_certificate(
    identity: NodeIdentity, platform: Platform, *, at: datetime, life: timedelta
) -> bytes:
    """Returns a DER certificate for the identity's TLS key with fresh evidence."""
    claims = _claims(identity.tls_spki)
    quote = platform.quote(hashlib.sha256(claims).digest() + _ZEROS)
    evidence = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [quote, claims]))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(identity.tls_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True
        )
        .add_extension(SIGNATURES_ONLY, critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False
        )
        .add_extension(
            x509.UnrecognizedExtension(EVIDENCE_OID, evidence), critical=False
        )
    )
    certificate = builder.sign(identity.tls_key, hashes.SHA256())
    return certificate.public_bytes(Encoding.DER)


def parse_certificate(unverified_der: bytes, *, at: datetime) -> EvidenceCertificate:
    """Returns what a peer's certificate holds, after checking its form.

    Steps: (1) size and X.509 form; (2) a P-256 key, which signed the certificate
    itself; (3) valid at `at`; (4) an end-entity certificate for server authentication
    only, so that pinning it trusts one key and nothing it might issue; (5) exactly one
    evidence extension of the known form, and no extension that a node does not write;
    (6) its claims name this key and nothing else.
    The caller verifies the quote and compares its report data.

    Raises:
        VerificationError: If any step fails.
    """
    # Step 1: form
    if len(unverified_der) > MAX_CERTIFICATE_BYTES:
        raise _refuse("certificate-size", f"at most {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = x509.load_der_x509_certificate(unverified_der)
        extensions = certificate.extensions
        key = certificate.public_key()
    except UNREADABLE as error:
        raise _refuse(
            "certificate-malformed", "an X.509 certificate", str(error)
        ) from error
    # Step 2: key and self-signature
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refuse("certificate-key", "a P-256 key", type(key).__name__)
    spki = spki_of(parse_spki(spki_of(key)))
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise _refuse(
            "certificate-signature", "a signature by the certificate's own key"
        ) from error
    # The library does not look at the signature's count of unused bits.
    if not unverified_der.endswith(b"\0" + certificate.signature):
        raise _refuse("certificate-malformed", "a signature of whole bytes")
    # Step 3: validity
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins - CLOCK_TOLERANCE <= at <= ends:
        raise _refuse(
            "certificate-expired" if at > ends else "certificate-not-yet-valid",
            f"validity at {at:%Y-%m-%d %H:%M:%SZ}",
            f"{begins:%Y-%m-%d %H:%M:%SZ} to {ends:%Y-%m-%d %H:%M:%SZ}",
        )
    # Step 4: role
    _check_role(extensions)
    # Step 5-6: evidence and claims
    quote, claims = _evidence(extensions)
    _check_nothing_else(extensions)
    if claims != _claims(spki):
        raise _refuse("certificate-claims", "claims that name this key and no more")
    return EvidenceCertificate(
        der=unverified_der,
        spki=spki,
        unverified_quote=quote,
        expected_report_data=hashlib.sha256(claims).digest() + _ZEROS,
    )


def _claims(spki: Spki) -> bytes:
    digest = hashlib.sha256(spki).digest()
    return cbor2.dumps({"pubkey-hash": cbor2.dumps([SHA256_ALGORITHM, digest])})


def _check_role(extensions: x509.Extensions) -> None:
    for wanted in (
        x509.BasicConstraints(ca=False, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        SIGNATURES_ONLY,
    ):
        try:
            found = extensions.get_extension_for_oid(wanted.oid)
        except x509.ExtensionNotFound as error:
            raise _refuse(
                "certificate-role", f"the extension {wanted.oid.dotted_string}", "none"
            ) from error
        if found.value != wanted or not found.critical:
            raise _refuse(
                "certificate-role",
                "an end entity for server authentication, whose key signs no other",
            )


def _check_nothing_else(extensions: x509.Extensions) -> None:
    for extension in extensions:
        if extension.oid not in _KNOWN:
            raise _refuse(
                "certificate-extension",
                "the extensions that a node writes and no other",
                extension.oid.dotted_string,
            )


def _evidence(extensions: x509.Extensions) -> tuple[bytes, bytes]:
    try:
        extension = extensions.get_extension_for_oid(EVIDENCE_OID)
    except x509.ExtensionNotFound as error:
        raise _refuse(
            "certificate-evidence", f"evidence under {EVIDENCE_OID.dotted_string}"
        ) from error
    value = extension.value
    if extension.critical or not isinstance(value, x509.UnrecognizedExtension):
        raise _refuse("certificate-evidence", "a non-critical evidence extension")
    try:
        tagged = cbor2.loads(value.value)
    except (cbor2.CBORError, ValueError, RecursionError) as error:
        raise _refuse("certificate-evidence", "CBOR", "other bytes") from error
    match tagged:
        case cbor2.CBORTag(tag=60000, value=[bytes(quote), bytes(claims)]):
            # One value has one encoding here, so nothing can hide behind a second.
            if cbor2.dumps(tagged) == value.value:
                return quote, claims
        case _:
            pass
    raise _refuse("certificate-evidence", f"tag {EVIDENCE_TAG} ([quote, claims])")


def _refuse(code: str, expected: str, got: str = "") -> VerificationError:
    return VerificationError(
        "the peer's certificate is refused", code=code, expected=expected, got=got
    )
