"""A development root: the authority that stands where Intel stands for hardware.

One per deployment. Its directory holds every key of the authority and stays with who
made the deployment; `issue_platform` writes a platform's own keys, and only those, into
another directory, which may go to a node.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.pck_extension import PLATFORM_INSTANCE_ID_BYTES, PPID_BYTES
from cloister.attestation.platforms.simulated.issuing import (
    Issuer,
    issue_pck,
    issue_platform_ca,
    issue_root,
    issue_tcb_signing,
)
from cloister.attestation.platforms.simulated.keyfiles import (
    damaged,
    make_private_directory,
    read_file,
    read_key,
    write_new,
    write_new_key,
)
from cloister.attestation.trust_root import TrustRoot, simulated_trust_root
from cloister.errors import ConfigError

PLATFORM_FORMAT = 1
PLATFORM_FILE = "platform.json"
PCK_CHAIN_FILE = "pck-chain.pem"
PCK_KEY_FILE = "pck.key"
ATTESTATION_KEY_FILE = "attestation.key"
MAX_NAME_LENGTH = 64

_ROOT = "root-ca"
_CA = "platform-ca"
_SIGNING = "tcb-signing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRoot:
    """A development root with its keys, in memory.

    Attributes:
        directory: Where it lies.
        root: The root CA.
        ca: The CA that issues PCK certificates.
        signing: The signer of collateral.
    """

    directory: Path
    root: Issuer = field(repr=False)
    ca: Issuer = field(repr=False)
    signing: Issuer = field(repr=False)

    @property
    def trust_root(self) -> TrustRoot:
        """The root as verifiers take it."""
        return simulated_trust_root(self.root.certificate.public_bytes(Encoding.DER))

    def issue_platform(self, directory: Path, *, name: str, at: datetime) -> str:
        """Writes a new platform's own keys into `directory`; never the root's.

        Returns its PPID, as policies and plans name it.

        Args:
            directory: The platform's; made if it is not there.
            name: Name of the platform, for people and logs.
            at: Start of its certificate's validity, aware.

        Raises:
            ConfigError: If the name is unusable, the directory is the root's own, or
                holds a platform already.
            StorageError: If the files cannot be written.
        """
        if not (name.isprintable() and 0 < len(name) <= MAX_NAME_LENGTH):
            raise ConfigError(
                "name of a simulated platform is unusable",
                code="simulated-name",
                expected=f"1 to {MAX_NAME_LENGTH} printable characters",
                got=repr(name),
            )
        if directory.resolve() == self.directory.resolve():
            raise ConfigError(
                "a platform cannot share the root's directory",
                code="simulated-root-exposed",
                expected="a directory of its own, without the root's key",
                got=str(directory),
            )
        make_private_directory(directory)
        pck_key, attestation_key = _new_key(), _new_key()
        ppid = secrets.token_bytes(PPID_BYTES)
        instance = secrets.token_bytes(PLATFORM_INSTANCE_ID_BYTES)
        pck = issue_pck(
            pck_key.public_key(),
            ca=self.ca,
            ppid=ppid,
            platform_instance_id=instance,
            at=at,
        )
        description = {
            "format": PLATFORM_FORMAT,
            "name": name,
            "ppid": ppid.hex(),
            "platform_instance_id": instance.hex(),
        }
        write_new_key(directory / PCK_KEY_FILE, pck_key)
        write_new_key(directory / ATTESTATION_KEY_FILE, attestation_key)
        chain = pck.public_bytes(Encoding.PEM) + self.ca.pem + self.root.pem
        write_new(directory / PCK_CHAIN_FILE, chain)
        write_new(directory / PLATFORM_FILE, json.dumps(description).encode())
        return ppid.hex()


def create_simulated_root(directory: Path, *, at: datetime) -> SimulatedRoot:
    """Makes a development root and writes it to `directory`.

    Args:
        directory: Made if it is not there; only its owner can enter it.
        at: Start of the certificates' validity, aware.

    Raises:
        ConfigError: If there is a root already.
        StorageError: If the files cannot be written.
        ValueError: If `at` is not aware; a bug of the caller.
    """
    if at.tzinfo is None:
        raise ValueError("at must be aware of its time zone")
    make_private_directory(directory)
    root_key, ca_key, signing_key = _new_key(), _new_key(), _new_key()
    root = Issuer(certificate=issue_root(root_key, at=at), key=root_key)
    made = SimulatedRoot(
        directory=directory,
        root=root,
        ca=Issuer(
            certificate=issue_platform_ca(ca_key.public_key(), root=root, at=at),
            key=ca_key,
        ),
        signing=Issuer(
            certificate=issue_tcb_signing(signing_key.public_key(), root=root, at=at),
            key=signing_key,
        ),
    )
    for name, issuer in ((_ROOT, made.root), (_CA, made.ca), (_SIGNING, made.signing)):
        write_new_key(directory / f"{name}.key", issuer.key)
        write_new(directory / f"{name}.pem", issuer.pem)
    return made


def load_simulated_root(directory: Path) -> SimulatedRoot:
    """Returns the development root that `create_simulated_root` wrote.

    Raises:
        ConfigError: If a file is missing, or others may read a key.
        StorageError: If a file is damaged, or a key is not its certificate's.
    """
    return SimulatedRoot(
        directory=directory,
        root=_load(directory, _ROOT),
        ca=_load(directory, _CA),
        signing=_load(directory, _SIGNING),
    )


def _load(directory: Path, name: str) -> Issuer:
    path = directory / f"{name}.pem"
    key = read_key(directory / f"{name}.key")
    try:
        certificate = x509.load_pem_x509_certificate(read_file(path))
        public_key = certificate.public_key()
    except ValueError as error:
        raise damaged(path, "no certificate in PEM") from error
    if public_key != key.public_key():
        raise damaged(path, "its key is another one's")
    return Issuer(certificate=certificate, key=key)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
