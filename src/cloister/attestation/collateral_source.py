"""Where collateral comes from: asked for by platform family, checked by verification.

What a source returns is for the platform that was asked for. Whether it is genuine is
found out again at each verification, wherever it came from.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.evidence import Evidence
from cloister.attestation.evidence_signatures import verified_signatures
from cloister.attestation.qe_identity import QeId
from cloister.attestation.reports import Tee
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import ConfigError, StorageError, VerificationError

PckCa = Literal["processor", "platform"]

# As Intel names its two authorities, and PCS its parameter.
_CA_PHRASES: dict[PckCa, str] = {
    "processor": "PCK Processor CA",
    "platform": "PCK Platform CA",
}
_QE_IDS: dict[Tee, QeId] = {"sgx": "QE", "tdx": "TD_QE"}
# Both revocation lists at their largest, in hex, are above anything else.
_MAX_FILE_BYTES = 8 * 1_048_576


class CollateralSource(Protocol):
    """Gives collateral for a platform family."""

    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> Collateral:
        """Returns collateral for exactly this platform family.

        Args:
            tee: Kind of environment.
            fmspc: The family, 12 hex digits of any case.
            ca: Which of Intel's two authorities issued the platform's certificate.

        Raises:
            CloisterError: If there is none, or none that can be used.
        """
        ...


class CollateralFiles:
    """Collateral in files of one directory, as a simulated deployment has it.

    The files are read each time: who renews them need tell nobody.

    Args:
        directory: Holds `collateral-sgx.json` and `collateral-tdx.json`, or one of
            them, in the JSON shape that DCAP tools exchange.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> Collateral:
        """Returns the collateral in the file for `tee`.

        Raises:
            ConfigError: If there is no file.
            StorageError: If it cannot be read or is damaged.
            VerificationError: If it is for another platform family.
        """
        path = self._directory / collateral_file_name(tee)
        try:
            collateral = parse_collateral(_read(path))
        except VerificationError as error:
            raise StorageError(
                f"{path} is damaged: {error.what}",
                code="collateral-damaged",
                expected=error.expected,
                got=error.got,
                remedy="fetch the collateral anew",
            ) from error
        check_belongs(collateral, tee=tee, fmspc=fmspc, ca=ca)
        return collateral


def collateral_file_name(tee: Tee) -> str:
    """Returns the name that a collateral file for `tee` has in a directory."""
    return f"collateral-{tee}.json"


def collateral_for_evidence(
    evidence: Evidence, *, source: CollateralSource, root: TrustRoot, at: datetime
) -> Collateral:
    """Returns the collateral for the platform that the evidence comes from.

    What needs no collateral is done first, steps 2, 7 and 9: a stranger's own
    certificate could name any platform, and anybody can glue a genuine one to a quote
    of his own. Each would have the source ask a service, and others wait.

    Args:
        evidence: A parsed quote.
        source: Where collateral comes from.
        root: The root under which the platform's certificate must be genuine.
        at: The time to verify for, aware.

    Raises:
        VerificationError: If no genuine platform signed it (steps 2, 7 and 9).
        CloisterError: If the source has nothing for it.
    """
    chain = verified_signatures(evidence, root=root, at=at)
    return source.collateral_for(
        tee=evidence.tee,
        fmspc=chain.platform.fmspc.hex().upper(),
        ca=_authority(chain.ca.common_name),
    )


def check_belongs(collateral: Collateral, *, tee: Tee, fmspc: str, ca: PckCa) -> None:
    """Checks that collateral is for one platform family, as far as it says itself.

    Raises:
        VerificationError: If it is for another one.
    """
    authority = collateral.pck_crl_issuer_chain.issuer.common_name
    for what, expected, got in (
        ("TCB info", tee.upper(), collateral.tcb_info.tee.upper()),
        ("QE identity", _QE_IDS[tee], collateral.qe_identity.id),
        ("FMSPC", fmspc.upper(), collateral.tcb_info.fmspc.hex().upper()),
        ("PCK CRL", _CA_PHRASES[ca], authority),
    ):
        if not (got == expected or (what == "PCK CRL" and expected in got)):
            raise VerificationError(
                f"collateral is for another platform family: {what}",
                code="collateral-foreign",
                expected=expected,
                got=got,
                remedy="fetch the collateral of this platform",
            )


def _authority(common_name: str) -> PckCa:
    for ca, phrase in _CA_PHRASES.items():
        if phrase in common_name:
            return ca
    raise VerificationError(
        "PCK certificate is by an unknown authority",
        code="certificate-name",
        expected=" or ".join(_CA_PHRASES.values()),
        got=f"'{common_name}'",
        step=2,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing",
            code="collateral-missing",
            expected="collateral in the JSON shape of DCAP tools",
            remedy="correct the path, or use a PCCS",
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read",
            code="collateral-unreadable",
            got=error.strerror or "an error",
            remedy="correct its permissions",
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise StorageError(
            f"{path} is damaged: too large",
            code="collateral-damaged",
            expected=f"at most {_MAX_FILE_BYTES} bytes",
            remedy="fetch the collateral anew",
        )
    return content
