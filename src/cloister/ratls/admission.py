"""Who may use the training port: short-lived certificates, and the table behind them.

TLS is the gate and the table is the guard. A certificate alone is not enough, because
an open channel outlives it and a resumed session skips its check; so every call and
every message of a stream asks the table again.

The admission CA signs client certificates only. No client ever trusts it as a root, and
what it issues is for client authentication alone, so an admitted client cannot pose as
the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.plan.plan import Role
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import Spki, parse_spki, spki_of

_AUTHORITY_NAME = "Cloister admission"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestedPeer:
    """A peer whose evidence was verified, appraised and bound to its keys.

    Attributes:
        role: Its role.
        party: Its party; the warrant proved it.
        epoch: The warrant's epoch.
        tls_key: Its TLS key.
        encryption_key: X25519, 32 bytes.
        verdict: What was appraised, and how.
    """

    role: Role
    party: str
    epoch: int
    tls_key: Spki
    encryption_key: bytes
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class AdmittedPeer:
    """An attested peer and the time until which it stays admitted."""

    peer: AttestedPeer
    expires_at: datetime


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

    def issue(self, peer: AttestedPeer, *, at: datetime, expires_at: datetime) -> bytes:
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
            .not_valid_before(at - CLOCK_TOLERANCE)
            .not_valid_after(expires_at)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
            )
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
        .not_valid_before(at - CLOCK_TOLERANCE)
        .not_valid_after(at + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    return AdmissionAuthority(key=key, certificate=certificate)


class AdmissionTable:
    """Which TLS keys may speak on the training port, and for whom.

    Args:
        clock: The server's time.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._by_key: dict[Spki, AdmittedPeer] = {}
        self._newest_epoch: dict[tuple[Role, str], int] = {}

    def check_epoch(self, role: Role, party: str, epoch: int) -> None:
        """Refuses an epoch that is not newer than every one admitted before.

        Raises:
            VerificationError: If it is not.
        """
        newest = self._newest_epoch.get((role, party), 0)
        if epoch <= newest:
            raise VerificationError(
                f"the warrant of {role} {party!r} is of an old epoch",
                code="epoch-old",
                expected=f"an epoch above {newest}",
                got=str(epoch),
                remedy="Start the node again, so that its custodian counts on.",
            )

    def admit(self, peer: AttestedPeer, *, expires_at: datetime) -> None:
        """Admits a peer; a former node of the same role and party is out from now on.

        Raises:
            VerificationError: If a newer epoch was admitted meanwhile.
        """
        self.check_epoch(peer.role, peer.party, peer.epoch)
        self._newest_epoch[peer.role, peer.party] = peer.epoch
        former = [
            key
            for key, admitted in self._by_key.items()
            if (admitted.peer.role, admitted.peer.party) == (peer.role, peer.party)
        ]
        for key in former:
            del self._by_key[key]
        self._by_key[peer.tls_key] = AdmittedPeer(peer, expires_at)

    def check(self, key: Spki) -> AttestedPeer:
        """Returns the peer admitted under `key`, now.

        Raises:
            VerificationError: If there is none, or its admission has lapsed.
        """
        admitted = self._by_key.get(key)
        if admitted is None:
            raise VerificationError(
                "the caller's key is not admitted",
                code="not-admitted",
                expected="a key in the admission table",
                got=f"key {hashlib.sha256(key).hexdigest()[:16]}",
                remedy="Enrol first; a newer node of the same party ends an older one.",
            )
        if self._clock() >= admitted.expires_at:
            raise VerificationError(
                f"the admission of {admitted.peer.party!r} has lapsed",
                code="admission-lapsed",
                expected=f"use before {admitted.expires_at:%Y-%m-%d %H:%M:%SZ}",
                remedy="Attest again.",
            )
        return admitted.peer

    def parties(self) -> tuple[AttestedPeer, ...]:
        """Returns every admitted peer, lapsed ones included, in order of admission."""
        return tuple(admitted.peer for admitted in self._by_key.values())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
