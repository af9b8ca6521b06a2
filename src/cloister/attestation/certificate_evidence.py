"""Certificates of any maker that carry a quote for their own key. NOT verified.

Follows Interoperable RA-TLS: extension 2.23.133.5.4.9 holds CBOR tag 60000 ([quote,
claims]), the quote's report data is SHA-256(claims) and 32 zeros, and the claims'
"pubkey-hash" names the hash of the SubjectPublicKeyInfo. Beside it a "nonce" may stand
and nothing else: a claim that we do not know could limit what the others mean.

Gramine's legacy extension (read as 0.6.9.42.840.113741.1337.6) holds a bare quote over
SHA-256 of the key. Where the first is there it is not looked at; alone it makes a
`LegacyCertificate`, whose quote counts only under a policy that asks for such ones
(`certificate_acceptance`).

Read by our own strict reader: pyca refuses certificates of makers who write NULL
parameters after ECDSA. The certificate's signature is not looked at: it is the
certificate's own key that would vouch for itself, and TLS shows who has that key. How
our own nodes' certificates must look is stricter and is `ratls.certificate`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import cbor2

from cloister.attestation.certificate_body import (
    BASIC_CONSTRAINTS_OID,
    KEY_USAGE_OID,
    parse_extensions,
)
from cloister.attestation.der import SEQUENCE, encode, parse_der
from cloister.attestation.pem import split_pem
from cloister.attestation.reports import REPORT_DATA_BYTES
from cloister.errors import VerificationError

EVIDENCE_OID = "2.23.133.5.4.9"
LEGACY_EVIDENCE_OID = "0.6.9.42.840.113741.1337.6"
EVIDENCE_TAG = 60000
PUBLIC_KEY_HASH = "pubkey-hash"
NONCE = "nonce"
# A quote with its chain is 5 to 10 kB, and Gramine carries two.
MAX_CERTIFICATE_BYTES = 65_536

_PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
_SUBJECT_ALTERNATIVE_NAME_OID = "2.5.29.17"
_EXTENDED_KEY_USAGE_OID = "2.5.29.37"
# What may be critical; all of it says how the key may be used, nothing of evidence.
_KNOWN_CRITICAL = frozenset(
    {
        BASIC_CONSTRAINTS_OID,
        KEY_USAGE_OID,
        _SUBJECT_ALTERNATIVE_NAME_OID,
        _EXTENDED_KEY_USAGE_OID,
    }
)
_KNOWN_CLAIMS = frozenset({PUBLIC_KEY_HASH, NONCE})
_EXTENSIONS_TAG = 0xA3
_CLAIMS = f"{PUBLIC_KEY_HASH}, beside it at most {NONCE}"
_PUBLIC_KEY, _EXTENSIONS, _BODY_LENGTH = 6, 7, 8

# IANA's named information registry.
_HASHES: dict[int, Callable[[bytes], bytes]] = {
    1: lambda data: hashlib.sha256(data).digest(),
    7: lambda data: hashlib.sha384(data).digest(),
    8: lambda data: hashlib.sha512(data).digest(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEvidence:
    """A quote out of a certificate, and what makes it that certificate's.

    Attributes:
        spki: The certificate's key, as its SubjectPublicKeyInfo in DER.
        unverified_quote: The quote it carries.
        expected_report_data: What the quote must say to be for this key, 64 bytes.
    """

    spki: bytes
    unverified_quote: bytes = field(repr=False)
    expected_report_data: bytes

    def check_bound(self, report_data: bytes) -> None:
        """Checks that a quote with this report data is for this certificate's key.

        Raises:
            VerificationError: If it is for another key.
        """
        if report_data != self.expected_report_data:
            raise VerificationError(
                "the quote was made for another key than the certificate's",
                code="certificate-binding",
                expected=self.expected_report_data.hex(),
                got=report_data.hex(),
                remedy="somebody may have put another machine's quote into it",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyCertificate:
    """A certificate with nothing but a bare quote in Gramine's legacy extension.

    On purpose no `CertificateEvidence`, and without the names of its attributes: only
    `certificate_acceptance.accepted_evidence` makes one of it, and asks a policy first.

    Attributes:
        spki: The certificate's key, as its SubjectPublicKeyInfo in DER.
        unaccepted_quote: The quote it carries; to be shown, and not to be verified.
    """

    spki: bytes
    unaccepted_quote: bytes = field(repr=False)


def is_certificate(unverified: bytes) -> bool:
    """Whether bytes look like a certificate in PEM or DER rather than a quote.

    A quote begins with its version, 3 to 5, and then a zero.
    """
    return unverified.startswith(_PEM_BEGIN) or unverified[:1] == bytes([SEQUENCE])


def report_data_over(signed: bytes) -> bytes:
    """Returns the report data, 64 bytes, of a quote made for `signed`."""
    return hashlib.sha256(signed).digest().ljust(REPORT_DATA_BYTES, b"\0")


def parse_certificate_evidence(
    unverified: bytes,
) -> CertificateEvidence | LegacyCertificate:
    """Returns the quote in a certificate; believes nothing of it.

    The caller asks `certificate_acceptance.accepted_evidence` whether it may count,
    verifies the quote, and then calls `check_bound`.

    Args:
        unverified: One certificate, in PEM or DER.

    Raises:
        VerificationError: If it is malformed, carries no evidence, or its claims do not
            name its own key or hold what is not known (step 1).
    """
    try:
        return _evidence(_der(unverified))
    except VerificationError as error:
        raise VerificationError(
            f"certificate with evidence: {error.what}",
            code="certificate-evidence",
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
            step=1,
        ) from error


def _der(unverified: bytes) -> bytes:
    if len(unverified) > 2 * MAX_CERTIFICATE_BYTES:
        raise _malformed("too large", expected=f"{MAX_CERTIFICATE_BYTES} bytes")
    if unverified.startswith(_PEM_BEGIN):
        return split_pem(unverified, names=("certificate",), step=1)[0]
    return unverified


def _evidence(unverified_der: bytes) -> CertificateEvidence | LegacyCertificate:
    if len(unverified_der) > MAX_CERTIFICATE_BYTES:
        raise _malformed("too large", expected=f"{MAX_CERTIFICATE_BYTES} bytes")
    fields = parse_der(unverified_der).children()
    if len(fields) != 3:
        raise _malformed("not body, algorithm and signature")
    body = fields[0].children()
    if len(body) != _BODY_LENGTH:
        raise _malformed("not a version 3 certificate with extensions")
    spki = encode(body[_PUBLIC_KEY].tag, body[_PUBLIC_KEY].content)
    extensions = parse_extensions(
        body[_EXTENSIONS], tag=_EXTENSIONS_TAG, known=_KNOWN_CRITICAL
    )
    if EVIDENCE_OID in extensions:
        quote, claims = _tagged(extensions[EVIDENCE_OID])
        _check_claims(claims, spki)
        return CertificateEvidence(
            spki=spki,
            unverified_quote=quote,
            expected_report_data=report_data_over(claims),
        )
    if LEGACY_EVIDENCE_OID in extensions:
        return LegacyCertificate(
            spki=spki, unaccepted_quote=extensions[LEGACY_EVIDENCE_OID]
        )
    raise _malformed("it carries no quote", expected=f"extension {EVIDENCE_OID}")


def _tagged(value: bytes) -> tuple[bytes, bytes]:
    match _cbor(value):
        case cbor2.CBORTag(tag=60000, value=[bytes(quote), bytes(claims)]):
            return quote, claims
        case _:
            raise _malformed(
                "its evidence has another form",
                expected=f"CBOR tag {EVIDENCE_TAG} ([quote, claims])",
            )


def _check_claims(claims: bytes, spki: bytes) -> None:
    """Checks that the claims hold what is known, each once, and name this key.

    Gramine's own verifier passes over unknown claims, and accepts claims without the
    key's hash, and then anybody's.
    """
    # 1. A map, and no key twice: in its shortest form it has each once.
    held = _cbor(claims)
    if not isinstance(held, dict):
        raise _malformed("its claims are no map", expected=f"a map with {_CLAIMS}")
    # 2. Nothing unknown.
    unknown = sorted(_name(key) for key in held.keys() - _KNOWN_CLAIMS)
    if unknown:
        raise _malformed(
            "it holds unknown claims",
            expected=_CLAIMS,
            got=", ".join(unknown)[:200],
        )
    # 3. A nonce is bytes. With what it should be compared only its asker knows.
    if NONCE in held and not isinstance(held[NONCE], bytes):
        raise _malformed("its nonce is not a byte string", expected=_CLAIMS)
    # 4. The hash is this key's.
    _check_key(held.get(PUBLIC_KEY_HASH), spki)


def _check_key(named: object, spki: bytes) -> None:
    match _cbor(named) if isinstance(named, bytes) else None:
        # A Boolean equals a number here, and is none in CBOR.
        case [int(algorithm), bytes(digest)] if (
            not isinstance(algorithm, bool) and algorithm in _HASHES
        ):
            if digest == _HASHES[algorithm](spki):
                return
            raise _malformed(
                "its claims name another key",
                expected=_HASHES[algorithm](spki).hex(),
                got=digest.hex(),
            )
        case _:
            raise _malformed(
                "its claims do not name a key",
                expected=f"{PUBLIC_KEY_HASH} with SHA-256, SHA-384 or SHA-512",
            )


def _name(key: object) -> str:
    return repr(key) if isinstance(key, str) else f"a {type(key).__name__}"


def _cbor(encoded: bytes) -> object:
    """Returns one CBOR value that has no second encoding: no key comes twice."""
    try:
        value: object = cbor2.loads(encoded)
        again = cbor2.dumps(value)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError) as error:
        raise _malformed("its evidence is not CBOR") from error
    if again != encoded:
        raise _malformed("its evidence is not in CBOR's shortest form")
    return value


def _malformed(why: str, *, expected: str = "", got: str = "") -> VerificationError:
    return VerificationError(
        why, code="certificate-evidence", expected=expected, got=got, step=1
    )
