"""Certificates under a development root, shaped as Intel's profile has them.

Names say SIMULATED and still carry the phrases that verifiers look for, so that stock
DCAP tools accept them under this root and no person takes them for Intel's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.attestation.der import (
    ENUMERATED,
    OCTET_STRING,
    encode,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_sequence,
)
from cloister.attestation.pck_extension import SGX_EXTENSION_OID, SGX_TYPES
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine

ORGANISATION = "Dev only, not Intel"
ROOT_NAME = "SIMULATED Intel SGX Root CA"
CA_NAME = "SIMULATED Intel SGX PCK Platform CA"
SIGNING_NAME = "SIMULATED Intel SGX TCB Signing"
PCK_NAME = "SIMULATED Intel SGX PCK Certificate"

# A name that can never be looked up (RFC 2606): verifiers want the field, not a fetch.
_ROOT_CRL_URL = "https://simulated.invalid/root-ca.crl"
_PCK_CRL_URL = "https://simulated.invalid/pck.crl"

_AUTHORITY_LIFE = timedelta(days=20 * 365)
_END_ENTITY_LIFE = timedelta(days=7 * 365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A certificate with its key.

    Attributes:
        certificate: The certificate.
        key: Its private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


def issue_root(key: ec.EllipticCurvePrivateKey, *, at: datetime) -> x509.Certificate:
    """Returns a self-signed root CA."""
    name = _name(ROOT_NAME)
    builder = _builder(name, key.public_key(), at=at, life=_AUTHORITY_LIFE)
    return _sign(_authority(builder, path_length=1), name, key, _ROOT_CRL_URL)


def issue_platform_ca(
    public_key: ec.EllipticCurvePublicKey, *, root: Issuer, at: datetime
) -> x509.Certificate:
    """Returns the CA that issues PCK certificates."""
    builder = _builder(_name(CA_NAME), public_key, at=at, life=_AUTHORITY_LIFE)
    return _issue(_authority(builder, path_length=0), root, _ROOT_CRL_URL)


def issue_tcb_signing(
    public_key: ec.EllipticCurvePublicKey, *, root: Issuer, at: datetime
) -> x509.Certificate:
    """Returns the certificate that signs collateral."""
    builder = _builder(_name(SIGNING_NAME), public_key, at=at, life=_END_ENTITY_LIFE)
    return _issue(_end_entity(builder), root, _ROOT_CRL_URL)


def issue_pck(
    public_key: ec.EllipticCurvePublicKey,
    *,
    ca: Issuer,
    ppid: bytes,
    platform_instance_id: bytes,
    at: datetime,
    machine: Machine = MACHINE,
) -> x509.Certificate:
    """Returns one platform's certificate, with Intel's SGX extension."""
    builder = _builder(_name(PCK_NAME), public_key, at=at, life=_END_ENTITY_LIFE)
    extension = x509.UnrecognizedExtension(
        x509.ObjectIdentifier(SGX_EXTENSION_OID),
        encode_pck_extension(
            ppid=ppid, platform_instance_id=platform_instance_id, machine=machine
        ),
    )
    return _issue(
        _end_entity(builder).add_extension(extension, critical=False),
        ca,
        _PCK_CRL_URL,
    )


def encode_pck_extension(
    *, ppid: bytes, platform_instance_id: bytes, machine: Machine = MACHINE
) -> bytes:
    """Returns the value of Intel's SGX extension for a simulated machine."""
    svns = (*machine.component_svns, machine.pce_svn)
    tcb = [
        _field(f"2.{number}", encode_integer(svn))
        for number, svn in enumerate(svns, start=1)
    ]
    configuration = [
        _field(f"7.{number}", encode_boolean(value=value))
        for number, value in enumerate((False, False, True), start=1)
    ]
    instance = (
        _field("6", encode(OCTET_STRING, platform_instance_id)),
        _field("7", encode_sequence(*configuration)),
    )
    return encode_sequence(
        _field("1", encode(OCTET_STRING, ppid)),
        _field(
            "2",
            encode_sequence(
                *tcb,
                _field("2.18", encode(OCTET_STRING, bytes(machine.component_svns))),
            ),
        ),
        _field("3", encode(OCTET_STRING, machine.pce_id)),
        _field("4", encode(OCTET_STRING, machine.fmspc)),
        _field("5", encode_integer(SGX_TYPES.index("scalable"), tag=ENUMERATED)),
        *(instance if machine.platform_instance else ()),
    )


def _field(arc: str, value: bytes) -> bytes:
    return encode_sequence(encode_oid(f"{SGX_EXTENSION_OID}.{arc}"), value)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
        ]
    )


def _builder(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    *,
    at: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at)
        .not_valid_after(at + life)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False
        )
    )


def _authority(
    builder: x509.CertificateBuilder, *, path_length: int
) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    ).add_extension(_key_usage(authority=True), critical=True)


def _end_entity(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    ).add_extension(_key_usage(authority=False), critical=True)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issue(
    builder: x509.CertificateBuilder, issuer: Issuer, crl_url: str
) -> x509.Certificate:
    return _sign(builder, issuer.certificate.subject, issuer.key, crl_url)


def _sign(
    builder: x509.CertificateBuilder,
    issuer_name: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    crl_url: str,
) -> x509.Certificate:
    point = x509.DistributionPoint(
        full_name=[x509.UniformResourceIdentifier(crl_url)],
        relative_name=None,
        reasons=None,
        crl_issuer=None,
    )
    return (
        builder.issuer_name(issuer_name)
        .add_extension(x509.CRLDistributionPoints([point]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, SHA256())
    )
