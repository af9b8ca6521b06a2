"""Certificate revocation lists as plain values. Parsed, NOT verified.

Follows RFC 5280 section 5 as far as Intel's profile uses it: version 2, ECDSA with
SHA-256, a CRL number, no critical extension (which rules out delta, indirect and
partial lists: what they leave out could be what matters).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.attestation.certificate_body import parse_extensions
from cloister.attestation.certificates import Certificate
from cloister.attestation.der import BIT_STRING, encode, parse_der
from cloister.errors import VerificationError

# Intel's largest list is below 4 KB, and each PCK more takes about 40 bytes: this is
# room for 13,000 of them.
MAX_CRL_BYTES = 524_288
CRL_NUMBER_OID = "2.5.29.20"

_VERSION_2 = 1
_EXTENSIONS_TAG = 0xA0
# Version, algorithm, issuer, thisUpdate, nextUpdate; then the entries, where there are
# any, and the extensions.
_VERSION, _ISSUER = 0, 2
_LENGTHS = (6, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """One list, read whole and not verified.

    Attributes:
        der: Its exact bytes.
        what: Which one it is, for errors.
        issuer: The issuer's name in DER.
        number: Rises with every issue.
        this_update: Start of its validity, aware.
        next_update: End of its validity, aware.
    """

    der: bytes = field(repr=False)
    what: str
    issuer: bytes = field(repr=False)
    number: int
    this_update: datetime
    next_update: datetime
    _parsed: x509.CertificateRevocationList = field(repr=False, compare=False)

    def check_issued_by(self, issuer: Certificate, *, at: datetime) -> None:
        """Checks that `issuer` may issue it and did, and that it is valid at `at`.

        Raises:
            VerificationError: If any of it does not hold (step 3).
        """
        if not issuer.body.signs_revocations:
            raise _refused(
                f"'{issuer.common_name}' may not issue a {self.what}",
                code="crl-issuer",
                expected="KeyUsage cRLSign",
            )
        if self.issuer != issuer.body.subject:
            raise _refused(
                f"{self.what} is another issuer's",
                code="crl-issuer",
                expected=issuer.common_name,
            )
        if not self._is_signed_by(issuer):
            raise _refused(
                f"{self.what} is not signed by '{issuer.common_name}'",
                code="crl-signature",
            )
        if not self.this_update <= at <= self.next_update:
            late = at > self.next_update
            raise _refused(
                f"{self.what} is not valid at this time",
                code="crl-expired" if late else "crl-not-yet-valid",
                expected=f"{self.this_update.isoformat()} to "
                f"{self.next_update.isoformat()}",
                got=at.isoformat(),
                remedy="fetch the collateral anew" if late else "",
            )

    def check_not_revoked(self, certificate: Certificate, *, step: int) -> None:
        """Checks that a certificate of the same issuer is not on the list.

        Raises:
            VerificationError: If it is (at `step`).
        """
        serial = certificate.body.serial_number
        if self._parsed.get_revoked_certificate_by_serial_number(serial) is not None:
            raise VerificationError(
                f"'{certificate.common_name}' is revoked",
                code="certificate-revoked",
                expected=f"a certificate that is not on the {self.what}",
                got=f"serial number {serial:x}",
                remedy="its owner has to have the platform certified anew",
                step=step,
            )

    def _is_signed_by(self, issuer: Certificate) -> bool:
        try:
            return self._parsed.is_signature_valid(issuer.public_key)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False


def parse_revocation_list(unverified_der: bytes, *, what: str) -> RevocationList:
    """Returns a list's values; believes none of them.

    Args:
        unverified_der: One list.
        what: Which one it is, for errors.

    Raises:
        VerificationError: If it is malformed, has no end or no number, its signature is
            of another kind than ECDSA with SHA-256, or an extension is critical
            (step 3).
    """
    if len(unverified_der) > MAX_CRL_BYTES:
        raise _malformed(what, f"over {MAX_CRL_BYTES} bytes")
    try:
        issuer, number = _body(unverified_der)
    except VerificationError as error:
        raise _malformed(what, error.what) from error
    try:
        parsed = x509.load_der_x509_crl(unverified_der)
        this_update, next_update = parsed.last_update_utc, parsed.next_update_utc
        algorithm = parsed.signature_algorithm_oid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _malformed(what, str(error)) from error
    if algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise _malformed(what, "signature is not ECDSA with SHA-256")
    if next_update is None:
        raise _malformed(what, "no end of its validity")
    return RevocationList(
        der=unverified_der,
        what=what,
        issuer=issuer,
        number=number,
        this_update=this_update,
        next_update=next_update,
        _parsed=parsed,
    )


def _body(unverified_der: bytes) -> tuple[bytes, int]:
    """Returns the issuer's name and the number, read by our own strict reader."""
    fields = parse_der(unverified_der).children()
    if (
        len(fields) != 3
        or fields[2].tag != BIT_STRING
        or fields[2].content[:1] != b"\0"
    ):
        raise _malformed("", "not body, algorithm and signature")
    body = fields[0].children()
    if len(body) not in _LENGTHS or body[_VERSION].integer() != _VERSION_2:
        raise _malformed("", "not a version 2 list with dates and extensions")
    issuer = encode(body[_ISSUER].tag, body[_ISSUER].content)
    extensions = parse_extensions(body[-1], tag=_EXTENSIONS_TAG, known=frozenset())
    number = _number(extensions)
    return issuer, number


def _number(extensions: dict[str, bytes]) -> int:
    if CRL_NUMBER_OID not in extensions:
        raise _malformed("", "no CRL number")
    number = parse_der(extensions[CRL_NUMBER_OID]).integer()
    if number < 0:
        raise _malformed("", "CRL number is negative")
    return number


def _malformed(what: str, why: str) -> VerificationError:
    return _refused(f"malformed {what}: {why}" if what else why, code="crl-malformed")


def _refused(
    what: str, *, code: str, expected: str = "", got: str = "", remedy: str = ""
) -> VerificationError:
    return VerificationError(
        what, code=code, expected=expected, got=got, remedy=remedy, step=3
    )
