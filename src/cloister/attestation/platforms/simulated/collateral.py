"""Collateral for simulated machines: what Intel's services would say about them.

TCB info version 3, QE identity version 2, both CRLs and the signing chain, in the JSON
object that DCAP tools exchange. Signatures cover the exact text of the inner documents,
so these are carried as strings and never written a second time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.keyfiles import write_new
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.platforms.simulated.quotes import raw_signature
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.attestation.tcb_info import EnclaveLevel, PlatformLevel
from cloister.attestation.tcb_status import EnclaveStatus, LevelStatus

# As long as Intel's own lives.
COLLATERAL_LIFE = timedelta(days=30)
COLLATERAL_FILES: dict[Tee, str] = {
    "sgx": "collateral-sgx.json",
    "tdx": "collateral-tdx.json",
}

_CRL_NUMBER = 1
_ANY_BITS = 0xFF
# Intel's identities leave MODE64 open and compare all other flags, XFRM not at all.
_QE_ATTRIBUTES = "11000000000000000000000000000000"
_QE_ATTRIBUTES_MASK = "FBFFFFFFFFFFFFFF0000000000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCollateral:
    """What would be said of a machine; by default that it is up to date.

    Attributes:
        tee: Kind of environment it is for.
        at: Start of its validity, aware.
        life: How long it is valid.
        machine: The machine that it describes.
        levels: Levels of the platform; None for one, up to date, that it meets.
        module_levels: Levels of TDX modules by major version; None for one, likewise.
            A version that is not here has no identity.
        qe_levels: Levels of the quoting enclave; None for one, likewise.
        tcb_info_number: Evaluation number of the TCB info.
        qe_identity_number: Evaluation number of the QE identity.
        revoked_by_root: Serial numbers on the root CA CRL.
        revoked_by_ca: Serial numbers on the PCK CRL.
        crl_number: Number of both lists; rises with every issue.
        tcb_info_extra: Members that the TCB info has instead of, or beside, its own.
        qe_identity_extra: The same of the QE identity.
    """

    tee: Tee
    at: datetime
    life: timedelta = COLLATERAL_LIFE
    machine: Machine = MACHINE
    levels: tuple[PlatformLevel, ...] | None = None
    module_levels: dict[int, tuple[EnclaveLevel, ...]] | None = None
    qe_levels: tuple[EnclaveLevel, ...] | None = None
    tcb_info_number: int = profile.TCB_EVALUATION_NUMBER
    qe_identity_number: int = profile.TCB_EVALUATION_NUMBER
    revoked_by_root: tuple[int, ...] = ()
    revoked_by_ca: tuple[int, ...] = ()
    crl_number: int = _CRL_NUMBER
    tcb_info_extra: dict[str, object] = field(default_factory=dict)
    qe_identity_extra: dict[str, object] = field(default_factory=dict)

    def signed_by(self, root: SimulatedRoot) -> dict[str, str]:
        """Returns the collateral, signed by a development root's authorities."""
        tcb_info = _compact(self.tcb_info())
        qe_identity = _compact(self.qe_identity())
        signing_chain = (root.signing.pem + root.root.pem).decode()
        key = root.signing.key
        return {
            "tcb_info": tcb_info,
            "tcb_info_signature": raw_signature(key, tcb_info.encode()).hex(),
            "tcb_info_issuer_chain": signing_chain,
            "qe_identity": qe_identity,
            "qe_identity_signature": raw_signature(key, qe_identity.encode()).hex(),
            "qe_identity_issuer_chain": signing_chain,
            "root_ca_crl": self._crl(root.root, self.revoked_by_root).hex(),
            "pck_crl": self._crl(root.ca, self.revoked_by_ca).hex(),
            "pck_crl_issuer_chain": (root.ca.pem + root.root.pem).decode(),
        }

    def tcb_info(self) -> dict[str, object]:
        """Returns the TCB info, version 3."""
        levels = self.levels
        if levels is None:
            levels = (met_level(self.machine, tee=self.tee, date=self.at),)
        module = self._tdx_module() if self.tee == "tdx" else {}
        return {
            "id": self.tee.upper(),
            "version": 3,
            **self._dates(),
            "fmspc": self.machine.fmspc.hex().upper(),
            "pceId": self.machine.pce_id.hex().upper(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": self.tcb_info_number,
            **module,
            "tcbLevels": [_platform_level(level) for level in levels],
            **self.tcb_info_extra,
        }

    def qe_identity(self) -> dict[str, object]:
        """Returns the identity of the enclave that quotes for `tee`, version 2."""
        enclave = profile.QUOTING_ENCLAVES[self.tee]
        levels = self.qe_levels
        if levels is None:
            svn = self.machine.quoting_enclave(self.tee).isv_svn
            levels = (enclave_level(svn, date=self.at),)
        return {
            "id": enclave.identity,
            "version": 2,
            **self._dates(),
            "tcbEvaluationDataNumber": self.qe_identity_number,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": _QE_ATTRIBUTES,
            "attributesMask": _QE_ATTRIBUTES_MASK,
            "mrsigner": profile.QE_SIGNER.hex().upper(),
            "isvprodid": enclave.isv_prod_id,
            "tcbLevels": [_enclave_level(level) for level in levels],
            **self.qe_identity_extra,
        }

    def _tdx_module(self) -> dict[str, object]:
        module: dict[str, object] = {
            "mrsigner": profile.MRSIGNERSEAM.hex().upper(),
            "attributes": profile.SEAM_ATTRIBUTES.hex().upper(),
            "attributesMask": bytes([_ANY_BITS] * 8).hex().upper(),
        }
        by_major = self.module_levels
        if by_major is None:
            svn, major = self.machine.tee_tcb_svn[:2]
            by_major = {major: (enclave_level(svn, date=self.at),)} if major else {}
        identities = [
            {
                "id": f"TDX_{major:02X}",
                **module,
                "tcbLevels": [_enclave_level(level) for level in levels],
            }
            for major, levels in by_major.items()
        ]
        return {
            "tdxModule": module,
            **({"tdxModuleIdentities": identities} if identities else {}),
        }

    def _dates(self) -> dict[str, object]:
        return {
            "issueDate": _timestamp(self.at),
            "nextUpdate": _timestamp(self.at + self.life),
        }

    def _crl(self, issuer: Issuer, serial_numbers: tuple[int, ...]) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(self.at)
            .next_update(self.at + self.life)
            .add_extension(x509.CRLNumber(self.crl_number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    issuer.key.public_key()
                ),
                critical=False,
            )
        )
        for number in serial_numbers:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(number)
                .revocation_date(self.at)
                .build()
            )
        return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)


def write_simulated_collateral(root: SimulatedRoot, *, at: datetime) -> None:
    """Writes `collateral-sgx.json` and `collateral-tdx.json` beside the root.

    Args:
        root: Who signs, and where.
        at: Start of its validity, aware; it lasts 30 days.

    Raises:
        ConfigError: If there is some already.
        StorageError: If it cannot be written.
    """
    for tee, name in COLLATERAL_FILES.items():
        content = json.dumps(simulated_collateral(root, tee=tee, at=at), indent=1)
        write_new(Path(root.directory) / name, content.encode())


def simulated_collateral(
    root: SimulatedRoot, *, tee: Tee, at: datetime
) -> dict[str, str]:
    """Returns collateral that judges every platform under `root` up to date.

    Args:
        root: Who signs.
        tee: Kind of environment it is for.
        at: Start of its validity, aware; it lasts 30 days.
    """
    return SimulatedCollateral(tee=tee, at=at).signed_by(root)


def met_level(
    machine: Machine,
    *,
    tee: Tee,
    date: datetime,
    status: LevelStatus = "UpToDate",
    advisory_ids: tuple[str, ...] = (),
) -> PlatformLevel:
    """Returns the highest level that a machine meets."""
    return PlatformLevel(
        sgx_svns=machine.component_svns,
        pce_svn=machine.pce_svn,
        tdx_svns=tuple(machine.tee_tcb_svn) if tee == "tdx" else (),
        status=status,
        date=date,
        advisory_ids=advisory_ids,
    )


def enclave_level(
    isv_svn: int,
    *,
    date: datetime,
    status: EnclaveStatus = "UpToDate",
    advisory_ids: tuple[str, ...] = (),
) -> EnclaveLevel:
    """Returns a level of a quoting enclave or of a TDX module."""
    return EnclaveLevel(
        isv_svn=isv_svn, status=status, date=date, advisory_ids=advisory_ids
    )


def _platform_level(level: PlatformLevel) -> dict[str, object]:
    tcb: dict[str, object] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in level.sgx_svns],
        "pcesvn": level.pce_svn,
    }
    if level.tdx_svns:
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in level.tdx_svns]
    return {"tcb": tcb, **_judgement(level)}


def _enclave_level(level: EnclaveLevel) -> dict[str, object]:
    return {"tcb": {"isvsvn": level.isv_svn}, **_judgement(level)}


def _judgement(level: PlatformLevel | EnclaveLevel) -> dict[str, object]:
    advisories = {"advisoryIDs": list(level.advisory_ids)} if level.advisory_ids else {}
    return {
        "tcbDate": _timestamp(level.date),
        "tcbStatus": level.status,
        **advisories,
    }


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))
