"""Step 10 of verification: how current platform, TDX module and quoting enclave are.

Follows Intel's quote verification library (TcbLevelCheck, TdxModuleCheck,
TDRelaunchCheck), table for table. What it calls "not supported" and "revoked" are
refusals here; all else is for the policy to judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cloister.attestation.pck_extension import PckExtension
from cloister.attestation.reports import SgxReport, TdReport
from cloister.attestation.tcb_info import (
    EnclaveLevel,
    PlatformLevel,
    TcbInfo,
    TdxModule,
)
from cloister.attestation.tcb_status import EnclaveStatus, LevelStatus, TcbStatus
from cloister.attestation.tdx_module import MODULE_MAJOR, MODULE_SVN, module_of
from cloister.errors import VerificationError

# TDX components 0 and 1 are the module's own, which its identity judges where it has
# one; the rest of a level is compared from here.
_AFTER_MODULE = 2
# TDX component 2 is the SEAM loader's.
_SEAM_LOADER = 2

# What an outdated module or quoting enclave makes of a status; what is not here stays.
_OUTDATED: dict[LevelStatus, LevelStatus] = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}
_CONFIGURATION_NEEDED: frozenset[LevelStatus] = frozenset(
    {
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDateConfigurationNeeded",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbVerdict:
    """How current everything together is; made by `concluded_tcb` and nowhere else.

    Attributes:
        status: In Intel's spelling.
        date: Of the level that decides it, aware.
        advisory_ids: Of all levels that were met, sorted.
    """

    status: TcbStatus
    date: datetime
    advisory_ids: tuple[str, ...]


def concluded_tcb(
    report: SgxReport | TdReport,
    *,
    platform: PckExtension,
    tcb_info: TcbInfo,
    module: TdxModule | None,
    qe_level: EnclaveLevel | None,
) -> TcbVerdict:
    """Returns how current the platform is, if it may be used at all.

    (10.1) The platform's level: the highest one that it meets.
    (10.2) The TDX module's level, and the platform's status with it.
    (10.3) TD report 1.5: whether a relaunch of the TD alone would help.
    (10.4) The quoting enclave's level, and the status with it.

    Args:
        report: The quote's body.
        platform: What the PCK certificate says of the platform.
        tcb_info: TCB info, verified by steps 4 and 5.
        module: The TDX module, from step 6; None for SGX.
        qe_level: The quoting enclave's level, from step 8; None if it reaches none.

    Raises:
        VerificationError: If one of them is at no level, or at a revoked one (step 10).
    """
    # (10.1) The platform.
    tee_tcb_svn = report.tee_tcb_svn if isinstance(report, TdReport) else None
    sgx_level, level = _matched_levels(tcb_info, platform, tee_tcb_svn)
    # (10.2) The TDX module.
    module_level = (
        None
        if tee_tcb_svn is None or module is None or not module.levels
        else _reached(module.levels, tee_tcb_svn[MODULE_SVN], "TDX module")
    )
    status = _with(level.status, module_level)
    _refuse_revoked(status)
    # (10.3) Relaunch, if the quoting enclave is current.
    if qe_level is None:
        raise _not_supported("quoting enclave")
    relaunch = (
        isinstance(report, TdReport)
        and qe_level.status == "UpToDate"
        and module_level is not None
        and module_level.status == "OutOfDate"
        and _relaunch_helps(report, status, sgx_level, tcb_info)
    )
    # (10.4) The quoting enclave.
    final = _with(status, qe_level)
    advisories = {*level.advisory_ids, *qe_level.advisory_ids}
    advisories |= set() if module_level is None else set(module_level.advisory_ids)
    return TcbVerdict(
        status=_relaunch_advised(final, sgx_level)
        if relaunch
        else _refuse_revoked(final),
        date=_deciding_date(level, module_level, qe_level),
        advisory_ids=tuple(sorted(advisories)),
    )


def _matched_levels(
    tcb_info: TcbInfo, platform: PckExtension, tee_tcb_svn: bytes | None
) -> tuple[PlatformLevel, PlatformLevel]:
    """Returns the highest level met by the SGX components, and by the TDX ones too."""
    sgx_level: PlatformLevel | None = None
    for level in tcb_info.levels:
        if not (
            _at_least(platform.component_svns, level.sgx_svns)
            and platform.pce_svn >= level.pce_svn
        ):
            continue
        sgx_level = sgx_level or level
        if tee_tcb_svn is None or _meets_tdx(tee_tcb_svn, level):
            return sgx_level, level
    raise _not_supported("platform")


def _meets_tdx(tee_tcb_svn: bytes, level: PlatformLevel) -> bool:
    start = _AFTER_MODULE if tee_tcb_svn[MODULE_MAJOR] > 0 else 0
    return _at_least(tuple(tee_tcb_svn[start:]), level.tdx_svns[start:])


def _at_least(got: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    """Whether every component is there; one that is lower makes all of it lower."""
    return all(svn >= least for svn, least in zip(got, needed, strict=True))


def _reached(levels: tuple[EnclaveLevel, ...], svn: int, what: str) -> EnclaveLevel:
    for level in levels:
        if svn >= level.isv_svn:
            return level
    raise _not_supported(what)


def _with(status: LevelStatus, other: EnclaveLevel | None) -> LevelStatus:
    """Returns a platform's status together with its module's or quoting enclave's."""
    verdict: EnclaveStatus = "UpToDate" if other is None else other.status
    if verdict == "Revoked":
        return "Revoked"
    if verdict == "OutOfDate":
        return _OUTDATED.get(status, status)
    return status


def _relaunch_helps(
    report: TdReport, status: LevelStatus, sgx_level: PlatformLevel, tcb_info: TcbInfo
) -> bool:
    """Whether only the TD is old: the module was updated under it while it ran.

    `tee_tcb_svn2` says what is loaded now; it must meet the newest level there is.
    """
    svn2 = report.tee_tcb_svn2
    if (
        svn2 is None
        or sgx_level.status not in _OUTDATED
        or status not in {"OutOfDate", "OutOfDateConfigurationNeeded"}
    ):
        return False
    newest = tcb_info.levels[0].tdx_svns
    if svn2[MODULE_MAJOR] == 0:
        module_svn = newest[MODULE_SVN]
    else:
        module_svn = module_of(svn2, tcb_info, step=10).levels[0].isv_svn
    return svn2[MODULE_SVN] >= module_svn and svn2[_SEAM_LOADER] >= newest[_SEAM_LOADER]


def _relaunch_advised(status: LevelStatus, sgx_level: PlatformLevel) -> TcbStatus:
    if {status, sgx_level.status} & _CONFIGURATION_NEEDED:
        return "TDRelaunchAdvisedConfigurationNeeded"
    return "TDRelaunchAdvised"


def _deciding_date(level: PlatformLevel, *others: EnclaveLevel | None) -> datetime:
    """Returns the platform level's date, or an earlier one of what is out of date."""
    outdated = (it for it in others if it is not None and it.status == "OutOfDate")
    return min([level.date, *(it.date for it in outdated)])


def _refuse_revoked(status: LevelStatus) -> TcbStatus:
    if status == "Revoked":
        raise VerificationError(
            "Intel has revoked this level of the platform",
            code="tcb-revoked",
            expected="any other TCB status",
            got="Revoked",
            remedy="the platform's owner has to update it and have it certified anew",
            step=10,
        )
    return status


def _not_supported(what: str) -> VerificationError:
    return VerificationError(
        f"{what} is at no level that Intel supports",
        code="tcb-not-supported",
        expected="at least the lowest TCB level",
        remedy="the platform's owner has to update it and have it certified anew",
        step=10,
    )
