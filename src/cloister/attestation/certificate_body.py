"""Names and extensions of an X.509 certificate, read by our own strict reader.

Follows RFC 5280 section 4.1 and 4.2, and reads only what Intel's profile uses. pyca
reads all of it too, but on some malformed values it only warns, which is no refusal,
and where warnings are errors it is not ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attestation.der import BIT_STRING, SET, Element, encode, parse_der
from cloister.attestation.pck_extension import SGX_EXTENSION_OID
from cloister.errors import VerificationError

BASIC_CONSTRAINTS_OID = "2.5.29.19"
KEY_USAGE_OID = "2.5.29.15"
COMMON_NAME_OID = "2.5.4.3"

# Order of a version 3 TBSCertificate without the two unique identifiers, which nobody
# has used in decades and which are refused by the count.
_VERSION_TAG = 0xA0
_EXTENSIONS_TAG = 0xA3
_SERIAL, _ISSUER, _SUBJECT, _EXTENSIONS = 1, 3, 5, 7
_BODY_LENGTH = 8
_KNOWN_CRITICAL = frozenset({BASIC_CONSTRAINTS_OID, KEY_USAGE_OID})

_DIGITAL_SIGNATURE = 0x80
_KEY_CERT_SIGN = 0x04
_CRL_SIGN = 0x02


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateBody:
    """What a certificate says of its subject and its role; nothing is verified.

    Attributes:
        common_name: The subject's only common name.
        subject: The subject's name in DER.
        issuer: The issuer's name in DER.
        serial_number: Positive.
        is_ca: BasicConstraints' CA bit.
        signs_certificates: KeyUsage's keyCertSign bit.
        signs_revocations: KeyUsage's cRLSign bit.
        signs_data: KeyUsage's digitalSignature bit.
        sgx_extension: Value of Intel's SGX extension; None where there is none.
    """

    common_name: str
    subject: bytes
    issuer: bytes
    serial_number: int
    is_ca: bool
    signs_certificates: bool
    signs_revocations: bool
    signs_data: bool
    sgx_extension: bytes | None


def parse_certificate_body(unverified_der: bytes) -> CertificateBody:
    """Returns names and extensions of a whole certificate in DER.

    Raises:
        VerificationError: If it is not strict DER of that form, BasicConstraints or
            KeyUsage is missing, an extension comes twice, or an unknown one is
            critical.
    """
    fields = parse_der(unverified_der).children()
    # A signature is whole octets. pyca passes over the count of unused bits, which no
    # signature covers: with it one certificate would have two spellings.
    if (
        len(fields) != 3
        or fields[2].tag != BIT_STRING
        or fields[2].content[:1] != b"\0"
    ):
        raise _malformed("not body, algorithm and signature")
    body = fields[0].children()
    if len(body) != _BODY_LENGTH or body[0].tag != _VERSION_TAG:
        raise _malformed("not a version 3 certificate with extensions")
    serial_number = body[_SERIAL].integer()
    if serial_number <= 0:
        raise _malformed("serial number is not positive")
    extensions = parse_extensions(
        body[_EXTENSIONS], tag=_EXTENSIONS_TAG, known=_KNOWN_CRITICAL
    )
    usage = _first_usage_bits(_required(extensions, KEY_USAGE_OID))
    return CertificateBody(
        common_name=_common_name(body[_SUBJECT]),
        subject=encode(body[_SUBJECT].tag, body[_SUBJECT].content),
        issuer=encode(body[_ISSUER].tag, body[_ISSUER].content),
        serial_number=serial_number,
        is_ca=_is_ca(_required(extensions, BASIC_CONSTRAINTS_OID)),
        signs_certificates=bool(usage & _KEY_CERT_SIGN),
        signs_revocations=bool(usage & _CRL_SIGN),
        signs_data=bool(usage & _DIGITAL_SIGNATURE),
        sgx_extension=extensions.get(SGX_EXTENSION_OID),
    )


def _common_name(name: Element) -> str:
    pairs = [
        attribute.children()
        for attributes in name.children()
        for attribute in attributes.children(SET)
    ]
    values = [
        pair[1].text()
        for pair in pairs
        if len(pair) == 2 and pair[0].oid() == COMMON_NAME_OID
    ]
    if len(values) != 1:
        raise _malformed("subject has not exactly one common name")
    return values[0]


def parse_extensions(
    wrapper: Element, *, tag: int, known: frozenset[str]
) -> dict[str, bytes]:
    """Returns extension values by identifier, of a certificate or a revocation list.

    Args:
        wrapper: The element that holds them.
        tag: The tag it must have.
        known: Extensions that may be critical.

    Raises:
        VerificationError: If they are malformed, one comes twice, or an unknown one is
            critical.
    """
    if wrapper.tag != tag:
        raise _malformed("extensions are not where they belong")
    values: dict[str, bytes] = {}
    for extension in parse_der(wrapper.content).children():
        members = extension.children()
        if not 2 <= len(members) <= 3:
            raise _malformed("an extension is not identifier, criticality and value")
        oid = members[0].oid()
        critical = len(members) == 3 and members[1].boolean()
        if oid in values:
            raise _malformed(f"extension {oid} comes twice")
        # RFC 5280 section 4.2: what is critical and not understood must be refused.
        if critical and oid not in known:
            raise _malformed(f"critical extension {oid} is unknown")
        values[oid] = members[-1].octets()
    return values


def _required(extensions: dict[str, bytes], oid: str) -> bytes:
    if oid not in extensions:
        raise _malformed(f"extension {oid} is missing")
    return extensions[oid]


def _is_ca(basic_constraints: bytes) -> bool:
    members = parse_der(basic_constraints).children()
    return bool(members) and members[0].boolean()


def _first_usage_bits(key_usage: bytes) -> int:
    """Returns the first octet of KeyUsage: digitalSignature down to encipherOnly."""
    bits = parse_der(key_usage).bit_string()
    if not bits:
        raise _malformed("KeyUsage allows nothing")
    return bits[0]


def _malformed(why: str) -> VerificationError:
    return VerificationError(why, code="certificate-malformed")
