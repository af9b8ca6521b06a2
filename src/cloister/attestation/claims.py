"""What genuine evidence says: the result of verification, the input of appraisal.

`Claims` are made by `verify.verify_evidence` and nowhere else. A function that takes
them may rely on every field; whether they are wanted is the policy's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.attestation.pck_extension import SgxType
from cloister.attestation.reports import SgxAttributes, TdAttributes, Tee
from cloister.attestation.tcb_status import TcbStatus
from cloister.attestation.trust_root import RootKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxMeasurements:
    """What runs in an enclave; byte strings as lower-case hex of full length."""

    mr_enclave: str
    mr_signer: str
    isv_prod_id: int
    isv_svn: int
    isv_ext_prod_id: str
    isv_family_id: str
    config_id: str
    config_svn: int
    misc_select: int
    cpu_svn: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxMeasurements:
    """What runs in a trust domain; byte strings as lower-case hex of full length.

    RTMR3 is extended by the workload itself: it is information, never sufficient.
    `mrservicetd` and `tee_tcb_svn2` are of TD reports 1.5; None in 1.0.
    """

    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    rtmr3: str
    mrconfigid: str
    mrowner: str
    mrownerconfig: str
    mrseam: str
    mrsignerseam: str
    seam_attributes: str
    tee_tcb_svn: str
    xfam: int
    mrservicetd: str | None
    tee_tcb_svn2: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a genuine quote says, and under which root it is genuine.

    Attributes:
        tee: Kind of environment.
        quote_version: Format of the quote.
        measurements: What runs there.
        attributes: How it runs, decoded.
        debug: Whether the host can look inside; for a trust domain, whether any bit
            of the group is set that makes it untrusted, the debug bit among them.
        report_data: The 64 bytes that the quoted code chose.
        fmspc: Platform family, 12 upper-case hex digits.
        ppid: Platform's provisioning identifier, 32 lower-case hex digits.
        platform_instance_id: 32 lower-case hex digits; None where not stated.
        sgx_type: How the platform protects its memory.
        dynamic_platform: Whether packages may be added; None where not stated.
        cached_keys: Whether Intel keeps the platform's root keys; None likewise.
        smt_enabled: Whether hyper-threads were on at certification; None likewise.
        tcb_status: How current platform, TDX module and quoting enclave are together.
        tcb_date: Date of the level that decides the status, aware, UTC: a platform
            at this level is not known to be safe from what was published later.
        advisory_ids: Intel's advisories that apply at this level, sorted.
        tcb_evaluation_number: The smaller of the two that follow.
        tcb_info_evaluation_number: Of the TCB info that was used.
        qe_identity_evaluation_number: Of the QE identity that was used.
        root_kind: Kind of the root that the evidence was verified under.
        root_sha256: SHA-256 of that root, lower-case hex.
        verified_at: The time that it was verified for, aware, UTC.
        collateral_issued_at: When the newer of the TCB info and the QE identity was
            signed, aware, UTC: it is not earlier than that, whatever a clock says.
        not_after: When the first thing that was checked expires, aware, UTC: a
            certificate, a revocation list, the TCB info or the QE identity.
    """

    tee: Tee
    quote_version: int
    measurements: SgxMeasurements | TdxMeasurements
    attributes: SgxAttributes | TdAttributes
    debug: bool
    report_data: bytes
    fmspc: str
    ppid: str
    platform_instance_id: str | None
    sgx_type: SgxType
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None
    tcb_status: TcbStatus
    tcb_date: datetime
    advisory_ids: tuple[str, ...]
    tcb_evaluation_number: int
    tcb_info_evaluation_number: int
    qe_identity_evaluation_number: int
    root_kind: RootKind
    root_sha256: str
    verified_at: datetime
    collateral_issued_at: datetime
    not_after: datetime

    @property
    def simulated(self) -> bool:
        """Whether anything but production hardware made the evidence."""
        return self.root_kind != "hardware"

    @property
    def root_name(self) -> str:
        """The root as a policy names it: "hardware" or "<kind>:sha256:<hex>"."""
        return (
            f"{self.root_kind}:sha256:{self.root_sha256}"
            if self.simulated
            else "hardware"
        )
