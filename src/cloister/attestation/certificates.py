"""X.509 certificates as plain values. No I/O, no trust decision.

Follows RFC 5280 as far as Intel's "SGX PCK Certificate and Certificate Revocation List
Profile Specification" uses it: P-256 keys, ECDSA with SHA-256, BasicConstraints and
KeyUsage, no other critical extension. pyca's own path validation is made for web
servers and is not used.

Every certificate is read into plain values at once, so that a malformed one ends in
our error here and not in another library's later on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import SignatureAlgorithmOID

from cloister.attestation.certificate_body import (
    CertificateBody,
    parse_certificate_body,
)
from cloister.errors import VerificationError

# Intel's certificates are below 1.5 KB.
MAX_CERTIFICATE_BYTES = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One certificate, read whole and not verified.

    Attributes:
        der: Its exact bytes.
        body: Names, role and extensions.
        not_before: Start of validity, aware.
        not_after: End of validity, aware.
        public_key: Its P-256 key.
    """

    der: bytes = field(repr=False)
    body: CertificateBody
    not_before: datetime
    not_after: datetime
    public_key: ec.EllipticCurvePublicKey = field(repr=False, compare=False)
    _parsed: x509.Certificate = field(repr=False, compare=False)

    @property
    def common_name(self) -> str:
        """The subject's common name."""
        return self.body.common_name

    def check_named(self, phrase: str, *, step: int) -> None:
        """Checks that the subject's common name says what it is for.

        Each certificate has its own part to play, and its name says which. Without
        this a PCK issued by the root itself, or one certificate in another's place,
        would pass: their signatures are good.

        Raises:
            VerificationError: If the phrase is not in the name.
        """
        if phrase not in self.common_name:
            raise _refused(
                "certificate stands in another one's place",
                code="certificate-name",
                expected=f"a common name with '{phrase}'",
                got=f"'{self.common_name}'",
                step=step,
            )

    def check_end_entity(self, *, step: int) -> None:
        """Checks that it may sign data, and no certificates.

        Raises:
            VerificationError: If it has another role.
        """
        body = self.body
        if body.is_ca or body.signs_certificates or not body.signs_data:
            raise _refused(
                f"'{self.common_name}' has another role",
                code="certificate-role",
                expected="no CA, and KeyUsage digitalSignature without keyCertSign",
                step=step,
            )

    def check_issued_by(self, issuer: Certificate, *, step: int) -> None:
        """Checks that `issuer` may issue certificates and did issue this one.

        Raises:
            VerificationError: If a name, a role or the signature does not hold.
        """
        if not (issuer.body.is_ca and issuer.body.signs_certificates):
            raise _refused(
                f"'{issuer.common_name}' is no certificate authority",
                code="certificate-role",
                expected="BasicConstraints CA and KeyUsage keyCertSign",
                step=step,
            )
        if self.body.issuer != issuer.body.subject:
            raise _refused(
                f"'{self.common_name}' names another issuer",
                code="certificate-issuer",
                expected=issuer.common_name,
                step=step,
            )
        try:
            self._parsed.verify_directly_issued_by(issuer._parsed)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise _refused(
                f"'{self.common_name}' is not signed by '{issuer.common_name}'",
                code="certificate-signature",
                step=step,
            ) from error

    def check_valid_at(self, at: datetime, *, step: int) -> None:
        """Checks that `at` lies within the validity, both ends included.

        Raises:
            VerificationError: If it does not.
        """
        if not self.not_before <= at <= self.not_after:
            late = at > self.not_after
            raise _refused(
                f"'{self.common_name}' is not valid at this time",
                code="certificate-expired" if late else "certificate-not-yet-valid",
                expected=f"{self.not_before.isoformat()} to "
                f"{self.not_after.isoformat()}",
                got=at.isoformat(),
                step=step,
            )


def parse_certificate(unverified_der: bytes, *, step: int) -> Certificate:
    """Returns a certificate's values; believes none of them.

    Args:
        unverified_der: One certificate.
        step: Number of the verification step it is read for.

    Raises:
        VerificationError: If it is malformed, its key or signature is of another kind
            than ECDSA P-256 with SHA-256, or an unknown extension is critical.
    """
    if len(unverified_der) > MAX_CERTIFICATE_BYTES:
        raise _malformed(f"over {MAX_CERTIFICATE_BYTES} bytes", step=step)
    try:
        body = parse_certificate_body(unverified_der)
    except VerificationError as error:
        raise _malformed(error.what, step=step) from error
    try:
        parsed = x509.load_der_x509_certificate(unverified_der)
        return Certificate(
            der=unverified_der,
            body=body,
            not_before=parsed.not_valid_before_utc,
            not_after=parsed.not_valid_after_utc,
            public_key=_p256_key(parsed, step=step),
            _parsed=parsed,
        )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise _malformed(str(error), step=step) from error


def _p256_key(parsed: x509.Certificate, *, step: int) -> ec.EllipticCurvePublicKey:
    if parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise _malformed("signature is not ECDSA with SHA-256", step=step)
    key = parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1
    ):
        raise _malformed("key is not ECDSA P-256", step=step)
    return key


def _malformed(why: str, *, step: int) -> VerificationError:
    return _refused(
        f"malformed certificate: {why}", code="certificate-malformed", step=step
    )


def _refused(
    what: str, *, code: str, step: int, expected: str = "", got: str = ""
) -> VerificationError:
    return VerificationError(what, code=code, expected=expected, got=got, step=step)
