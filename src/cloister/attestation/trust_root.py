"""The one certificate everything else hangs from, and what kind it is.

A root enters from here or from the caller, never from a quote. What is called hardware
is one certificate, pinned below by its hash; no argument makes another one hardware.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloister.attestation.certificates import parse_certificate
from cloister.errors import ConfigError, VerificationError

RootKind = Literal["hardware", "preproduction", "simulated"]

# SHA-256 of the DER of "Intel SGX Root CA", valid 2018-05-21 .. 2049-12-31.
INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
_INTEL_ROOT_FILE = Path(__file__).parent / "roots" / "intel_sgx_root_ca.der"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRoot:
    """A root certificate and its kind; the two can only come together rightly.

    Attributes:
        kind: "hardware" for Intel's root and nothing else; otherwise "preproduction" or
            "simulated", as the caller says.
        der: The certificate's exact bytes.

    Raises:
        ConfigError: If `kind` is not the one that `der` has.
    """

    kind: RootKind
    der: bytes

    def __post_init__(self) -> None:
        """Refuses any root but Intel's as hardware, and Intel's as anything else."""
        if (self.kind == "hardware") != (self.sha256 == INTEL_ROOT_SHA256):
            raise ConfigError(
                f"root certificate is not of the kind '{self.kind}'",
                code="root-kind",
                expected=f"SHA-256 {INTEL_ROOT_SHA256} for hardware, another one for "
                "any other kind",
                got=self.sha256,
                remedy="Intel's root is built in; a development root is never hardware",
            )

    @property
    def sha256(self) -> str:
        """SHA-256 of the certificate, 64 lower-case hex digits."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def name(self) -> str:
        """How a policy names this root: "hardware" or "<kind>:sha256:<hex>"."""
        return (
            "hardware"
            if self.kind == "hardware"
            else f"{self.kind}:sha256:{self.sha256}"
        )


def intel_trust_root() -> TrustRoot:
    """Returns Intel's SGX root CA, from the file that comes with the package.

    Raises:
        ConfigError: If that file is missing or is not the pinned certificate.
    """
    try:
        der = _INTEL_ROOT_FILE.read_bytes()
    except OSError as error:
        raise ConfigError(
            "Intel's root certificate is missing from the installation",
            code="root-missing",
            expected=str(_INTEL_ROOT_FILE),
            remedy="install the package again",
        ) from error
    return TrustRoot(kind="hardware", der=der)


def preproduction_trust_root(der: bytes) -> TrustRoot:
    """Returns a root of Intel's for machines that are not for sale; never hardware.

    Such machines prove nothing about confidentiality; a policy names their root by its
    hash, and claims under it count as simulated.

    Args:
        der: A self-signed CA certificate.

    Raises:
        ConfigError: If it is Intel's production root, or no self-signed CA certificate.
    """
    return _other_root("preproduction", der)


def simulated_trust_root(der: bytes) -> TrustRoot:
    """Returns a development root; never a hardware one, and never Intel's.

    Args:
        der: A self-signed CA certificate.

    Raises:
        ConfigError: If it is Intel's root, or no self-signed CA certificate.
    """
    return _other_root("simulated", der)


def _other_root(kind: Literal["preproduction", "simulated"], der: bytes) -> TrustRoot:
    try:
        certificate = parse_certificate(der, step=2)
        certificate.check_issued_by(certificate, step=2)
    except VerificationError as error:
        raise ConfigError(
            f"{kind} root cannot be used: {error.what}",
            code="root-malformed",
            expected="a self-signed CA certificate in DER",
            remedy="`cloister init` makes a simulated one",
        ) from error
    return TrustRoot(kind=kind, der=der)
