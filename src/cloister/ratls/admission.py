"""The admission CA: short-lived client certificates for the training port.

A certificate is the gate; the table behind it (`admission_table`) is the guard.

The admission CA signs client certificates only. No client ever trusts it as a root, and
what it issues is for client authentication alone, so an admitted client cannot pose as
the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.ratls.admission_table import Peer
from cloister.ratls.certificate import BACKDATED, SIGNATURES_ONLY
from cloister.ratls.identity import Spki, parse_spki, spki_of

_AUTHORITY_NAME = "Cloister admission"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionAuthority:
    """The admission CA: its key lives in the server's memory alone."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @property
    def spki(self) -> Spki:
        """The CA's public key, bound in the server's evidence."""
        return spki_of(self.key.public_key())

    def certificate_pem(self) -> bytes:
        """Returns the only root the training port accepts clients under."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, peer: Peer, *, at: datetime, expires_at: datetime) -> bytes:
        """Returns a DER client certificate for an attested key.

        The subject is ours, not the client's; there is no DNS name; the only use is
        client authentication, marked critical.
        """
        subject = f"{peer.role} {peer.party} epoch {peer.epoch}"
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(subject))
            .issuer_name(self.certificate.subject)
            .public_key(parse_spki(peer.tls_key))
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - BACKDATED)
            .not_valid_after(expires_at)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
            )
            .add_extension(SIGNATURES_ONLY, critical=True)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)


def new_authority(*, at: datetime, life: timedelta) -> AdmissionAuthority:
    """Returns a fresh admission CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(_AUTHORITY_NAME)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    return AdmissionAuthority(key=key, certificate=certificate)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
