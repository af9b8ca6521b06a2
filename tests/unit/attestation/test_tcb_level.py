"""Step 10 by itself, table for table: levels in, one status out."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest

from cloister.attestation.pck_extension import PckExtension, parse_pck_extension
from cloister.attestation.platforms.measurement import (
    Installation,
    node_measurement,
)
from cloister.attestation.platforms.simulated.issuing import encode_pck_extension
from cloister.attestation.platforms.simulated.profile import Machine
from cloister.attestation.platforms.simulated.quotes import (
    SGX_V4,
    TD_10_V4,
    TD_15_V5,
    QuoteForm,
    report_body,
)
from cloister.attestation.reports import (
    SgxReport,
    TdReport,
    parse_sgx_report,
    parse_td_report,
    parse_td_report_15,
)
from cloister.attestation.tcb_info import (
    EnclaveLevel,
    PlatformLevel,
    TcbInfo,
    TdxModule,
)
from cloister.attestation.tcb_level import TcbVerdict, concluded_tcb
from cloister.attestation.tcb_status import (
    TCB_STATUSES,
    EnclaveStatus,
    LevelStatus,
    TcbStatus,
)
from cloister.errors import VerificationError

NOW = datetime(2026, 11, 20, tzinfo=UTC)
OLD = NOW - timedelta(days=900)
NOTHING = Installation(
    interpreter=bytes(32),
    installed=bytes(32),
    interpreter_files=0,
    installed_files=0,
    total_bytes=0,
)
LEVELS: tuple[LevelStatus, ...] = get_args(LevelStatus)
ENCLAVES: tuple[EnclaveStatus, ...] = get_args(EnclaveStatus)

# Written out once more, so that a slip in one of the two shows.
WITH_OUTDATED: dict[LevelStatus, TcbStatus] = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "OutOfDate": "OutOfDate",
    "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
}


def level(
    status: LevelStatus = "UpToDate",
    *,
    sgx: int = 1,
    pce: int = 1,
    tdx: tuple[int, ...] = (1, 0, 1),
    date: datetime = NOW,
    advisories: tuple[str, ...] = (),
) -> PlatformLevel:
    return PlatformLevel(
        sgx_svns=(sgx, *[0] * 15),
        pce_svn=pce,
        tdx_svns=(*tdx, *[0] * 13),
        status=status,
        date=date,
        advisory_ids=advisories,
    )


def enclave(
    status: EnclaveStatus = "UpToDate",
    svn: int = 1,
    *,
    date: datetime = NOW,
    advisories: tuple[str, ...] = (),
) -> EnclaveLevel:
    return EnclaveLevel(isv_svn=svn, status=status, date=date, advisory_ids=advisories)


def module(*levels: EnclaveLevel) -> TdxModule:
    return TdxModule(
        mr_signer=bytes(48),
        attributes=bytes(8),
        attributes_mask=bytes(8),
        levels=levels,
    )


def tcb_info(
    *levels: PlatformLevel, modules: dict[int, TdxModule] | None = None
) -> TcbInfo:
    return TcbInfo(
        tee="tdx",
        fmspc=bytes(6),
        pce_id=bytes(2),
        issue_date=NOW,
        next_update=NOW,
        evaluation_number=1,
        levels=levels,
        tdx_module=module(),
        tdx_module_identities=modules or {},
    )


def platform(sgx: int = 1, pce: int = 1) -> PckExtension:
    machine = Machine(component_svns=(sgx, *[0] * 15), pce_svn=pce)
    return parse_pck_extension(
        encode_pck_extension(
            ppid=bytes(16), platform_instance_id=bytes(16), machine=machine
        )
    )


def td(
    svn: tuple[int, int, int] = (1, 1, 1), now: tuple[int, int, int] | None = None
) -> TdReport:
    """A TD report: 1.0, or with what is loaded now 1.5."""
    machine = Machine(
        tee_tcb_svn=bytes(svn) + bytes(13),
        tee_tcb_svn2=bytes(now or (0, 0, 0)) + bytes(13),
    )
    if now is None:
        return parse_td_report(_body(TD_10_V4, machine))
    return parse_td_report_15(_body(TD_15_V5, machine)[6:])


def sgx() -> SgxReport:
    return parse_sgx_report(_body(SGX_V4, Machine()))


def _body(form: QuoteForm, machine: Machine) -> bytes:
    measurement = node_measurement(NOTHING, sources=(b"",), role="worker")
    return report_body(
        form=form, measurement=measurement, report_data=bytes(64), machine=machine
    )


def concluded(
    report: SgxReport | TdReport,
    info: TcbInfo,
    *,
    qe: EnclaveLevel | None = None,
    sgx_svn: int = 1,
    pce: int = 1,
) -> TcbVerdict:
    chosen = None
    if isinstance(report, TdReport):
        major = report.tee_tcb_svn[1]
        chosen = info.tdx_module_identities[major] if major else info.tdx_module
    return concluded_tcb(
        report,
        platform=platform(sgx_svn, pce),
        tcb_info=info,
        module=chosen,
        qe_level=enclave() if qe is None else qe,
    )


def refused(report: SgxReport | TdReport, info: TcbInfo, **how: int) -> str:
    with pytest.raises(VerificationError) as refusal:
        concluded(report, info, sgx_svn=how.get("sgx_svn", 1), pce=how.get("pce", 1))
    assert refusal.value.step == 10
    return refusal.value.code


@pytest.mark.parametrize("status", LEVELS)
@pytest.mark.parametrize("qe", ENCLAVES)
def test_sgx_status_with_the_quoting_enclaves(
    status: LevelStatus, qe: EnclaveStatus
) -> None:
    info = tcb_info(level(status))
    if "Revoked" in {status, qe}:
        with pytest.raises(VerificationError) as refusal:
            concluded(sgx(), info, qe=enclave(qe))
        assert (refusal.value.code, refusal.value.step) == ("tcb-revoked", 10)
        return
    expected = status if qe == "UpToDate" else WITH_OUTDATED[status]
    assert concluded(sgx(), info, qe=enclave(qe)).status == expected


@pytest.mark.parametrize("status", LEVELS)
@pytest.mark.parametrize("of_module", ENCLAVES)
@pytest.mark.parametrize("qe", ENCLAVES)
def test_tdx_status_with_the_modules_and_the_quoting_enclaves(
    status: LevelStatus, of_module: EnclaveStatus, qe: EnclaveStatus
) -> None:
    info = tcb_info(level(status), modules={1: module(enclave(of_module))})
    if "Revoked" in {status, of_module, qe}:
        with pytest.raises(VerificationError) as refusal:
            concluded(td(), info, qe=enclave(qe))
        assert (refusal.value.code, refusal.value.step) == ("tcb-revoked", 10)
        return
    fine = {of_module, qe} == {"UpToDate"}
    expected = status if fine else WITH_OUTDATED[status]
    assert concluded(td(), info, qe=enclave(qe)).status == expected


def test_the_highest_level_that_is_met_counts() -> None:
    info = tcb_info(
        level("UpToDate", sgx=3, pce=3),
        level("ConfigurationNeeded", sgx=3, pce=2),
        level("SWHardeningNeeded", sgx=2, pce=2),
        level("OutOfDate", sgx=1, pce=1),
    )
    for svn, pce, expected in (
        (3, 3, "UpToDate"),
        (4, 9, "UpToDate"),
        (3, 2, "ConfigurationNeeded"),
        (2, 9, "SWHardeningNeeded"),
        (9, 1, "OutOfDate"),
        (1, 9, "OutOfDate"),
    ):
        assert concluded(sgx(), info, sgx_svn=svn, pce=pce).status == expected
    assert refused(sgx(), info, sgx_svn=0, pce=9) == "tcb-not-supported"
    assert refused(sgx(), info, sgx_svn=9, pce=0) == "tcb-not-supported"


def test_one_component_that_is_lower_makes_all_of_it_lower() -> None:
    high = dataclasses.replace(level(sgx=0), sgx_svns=(*[0] * 15, 1))
    low = level("OutOfDate", sgx=0)
    assert concluded(sgx(), tcb_info(high, low), sgx_svn=200).status == "OutOfDate"


def test_components_of_the_module_are_skipped_where_it_has_an_identity() -> None:
    modules = {1: module(enclave())}
    info = tcb_info(level(tdx=(9, 9, 1)), modules=modules)
    assert concluded(td((1, 1, 1)), info).status == "UpToDate"
    # Without an identity of its own, nothing else would judge it.
    old = tcb_info(level(tdx=(9, 0, 1)), level("OutOfDate", tdx=(0, 0, 1)))
    assert concluded(td((1, 0, 1)), old).status == "OutOfDate"
    assert concluded(td((9, 0, 1)), old).status == "UpToDate"


def test_components_after_the_modules_are_never_skipped() -> None:
    modules = {1: module(enclave())}
    for place in range(2, 16):
        high = dataclasses.replace(
            level(), tdx_svns=tuple(1 if at == place else 0 for at in range(16))
        )
        low = level("OutOfDate", tdx=(0, 0, 0))
        report = td((1, 1, 0))
        info = tcb_info(high, low, modules=modules)
        assert concluded(report, info).status == "OutOfDate"
        met = dataclasses.replace(
            report,
            tee_tcb_svn=bytes(
                {1: 1, place: 1}.get(at, 0) if at else 1 for at in range(16)
            ),
        )
        assert concluded(met, info).status == "UpToDate"


def test_no_level_for_the_td_or_the_module_or_the_enclave_is_refused() -> None:
    modules = {1: module(enclave(svn=5))}
    info = tcb_info(level(tdx=(0, 0, 2)), modules=modules)
    assert refused(td((5, 1, 1)), info) == "tcb-not-supported"
    info = tcb_info(level(), modules=modules)
    assert refused(td((4, 1, 1)), info) == "tcb-not-supported"
    with pytest.raises(VerificationError) as refusal:
        concluded_tcb(
            sgx(), platform=platform(), tcb_info=info, module=None, qe_level=None
        )
    assert refusal.value.code == "tcb-not-supported"


def test_a_revoked_level_above_the_tds_is_passed_over_as_intel_does() -> None:
    info = tcb_info(
        level("Revoked", tdx=(0, 0, 9)),
        level("SWHardeningNeeded", tdx=(0, 0, 1)),
        modules={1: module(enclave())},
    )
    assert concluded(td(), info).status == "SWHardeningNeeded"
    assert refused(td((1, 1, 9)), info) == "tcb-revoked"


def relaunch(
    now: tuple[int, int, int],
    *levels: PlatformLevel,
    launched: tuple[int, int, int] = (1, 1, 1),
    qe: EnclaveStatus = "UpToDate",
    newest: EnclaveStatus = "UpToDate",
) -> TcbStatus:
    """A TD launched on module 1.1, outdated, where 1.5 and 3.2 are the newest."""
    modules = {
        1: module(enclave(newest, 5), enclave("OutOfDate", 1)),
        3: module(enclave("UpToDate", 2)),
    }
    info = tcb_info(*(levels or (level(tdx=(7, 0, 1)),)), modules=modules)
    return concluded(td(launched, now), info, qe=enclave(qe)).status


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ((5, 1, 1), "TDRelaunchAdvised"),
        ((9, 1, 9), "TDRelaunchAdvised"),
        ((2, 3, 1), "TDRelaunchAdvised"),
        ((7, 0, 1), "TDRelaunchAdvised"),
        ((4, 1, 1), "OutOfDate"),
        ((1, 3, 1), "OutOfDate"),
        ((6, 0, 1), "OutOfDate"),
        ((5, 1, 0), "OutOfDate"),
        ((7, 0, 0), "OutOfDate"),
    ],
)
def test_a_relaunch_is_advised_where_the_newest_module_is_loaded(
    now: tuple[int, int, int], expected: TcbStatus
) -> None:
    assert relaunch(now) == expected


@pytest.mark.parametrize("status", LEVELS)
def test_a_relaunch_is_advised_only_on_a_platform_that_is_current(
    status: LevelStatus,
) -> None:
    if status == "Revoked":
        return
    got = relaunch((5, 1, 1), level(status, tdx=(7, 0, 1)))
    assert (
        got
        == {
            "UpToDate": "TDRelaunchAdvised",
            "SWHardeningNeeded": "TDRelaunchAdvised",
            "ConfigurationNeeded": "TDRelaunchAdvisedConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded": "TDRelaunchAdvisedConfigurationNeeded",
            "OutOfDate": "OutOfDate",
            "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
        }[status]
    )


def test_a_relaunch_looks_at_the_platforms_own_level_and_the_tds() -> None:
    cases: tuple[tuple[LevelStatus, LevelStatus, TcbStatus], ...] = (
        ("UpToDate", "OutOfDate", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "OutOfDate", "TDRelaunchAdvisedConfigurationNeeded"),
        (
            "UpToDate",
            "OutOfDateConfigurationNeeded",
            "TDRelaunchAdvisedConfigurationNeeded",
        ),
        ("OutOfDate", "UpToDate", "OutOfDate"),
        ("Revoked", "UpToDate", "OutOfDate"),
    )
    for own, of_td, expected in cases:
        levels = (level(own, tdx=(7, 0, 2)), level(of_td, tdx=(7, 0, 1)))
        assert relaunch((5, 1, 2), *levels) == expected


def test_a_relaunch_would_not_help_an_outdated_quoting_enclave() -> None:
    assert relaunch((5, 1, 1), qe="OutOfDate") == "OutOfDate"


def test_a_relaunch_is_not_advised_for_a_module_without_an_identity() -> None:
    assert relaunch((7, 0, 1), level("OutOfDate"), launched=(1, 0, 1)) == "OutOfDate"


def test_a_relaunch_is_not_advised_by_a_report_that_does_not_say_what_is_loaded() -> (
    None
):
    info = tcb_info(
        level(tdx=(7, 0, 1)),
        modules={1: module(enclave("UpToDate", 5), enclave("OutOfDate", 1))},
    )
    assert concluded(td((1, 1, 1)), info).status == "OutOfDate"


def test_the_newest_level_counts_whatever_its_own_status() -> None:
    """As in Intel's library, which compares SVNs and not what they are called."""
    assert relaunch((5, 1, 1), newest="OutOfDate") == "TDRelaunchAdvised"


def test_a_loaded_module_that_the_tcb_info_does_not_know_is_refused() -> None:
    with pytest.raises(VerificationError) as refusal:
        relaunch((5, 2, 1))
    assert (refusal.value.code, refusal.value.step) == ("tdx-module-unknown", 10)


def test_advisories_of_all_three_are_merged_and_sorted() -> None:
    info = tcb_info(
        level(advisories=("INTEL-SA-9", "INTEL-SA-1")),
        level("OutOfDate", sgx=0, advisories=("INTEL-SA-0",)),
        modules={1: module(enclave(advisories=("INTEL-SA-5", "INTEL-SA-9")))},
    )
    qe = enclave(advisories=("INTEL-SA-3", "INTEL-SA-1"))
    merged = ("INTEL-SA-1", "INTEL-SA-3", "INTEL-SA-5", "INTEL-SA-9")
    assert concluded(td(), info, qe=qe).advisory_ids == merged


def test_the_date_is_that_of_what_is_out_of_date() -> None:
    modules = {1: module(enclave(date=OLD))}
    current = tcb_info(level(), modules=modules)
    # A current module's date says nothing: it is as old as the module.
    assert concluded(td(), current).date == NOW
    outdated = tcb_info(level(), modules={1: module(enclave("OutOfDate", date=OLD))})
    assert concluded(td(), outdated).date == OLD
    assert concluded(sgx(), current, qe=enclave("OutOfDate", date=OLD)).date == OLD
    older = tcb_info(level(date=OLD), modules=modules)
    assert concluded(sgx(), older, qe=enclave("OutOfDate")).date == OLD


def test_every_status_that_claims_may_have_is_named_once() -> None:
    assert get_args(TcbStatus) == TCB_STATUSES
    assert len(set(TCB_STATUSES)) == 8
    assert "Revoked" not in TCB_STATUSES
