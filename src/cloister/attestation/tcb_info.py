"""TCB info: what Intel says of the security versions of one platform family.

Follows the PCS API version 4, `GET /{sgx,tdx}/certification/v4/tcb`, TCB info version
3, and what Intel's quote verification library asks of it. Parsed, NOT verified: step 4
checks the signature, step 5 for whom it is, steps 6 and 10 use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from cloister.attestation.reports import Tee
from cloister.attestation.signed_json import (
    AdvisoryId,
    Hex2,
    Hex6,
    Hex8,
    Hex48,
    Number32,
    Svn8,
    Svn16,
    Timestamp,
    malformed,
    read_document,
    timestamp,
)
from cloister.attestation.tcb_status import EnclaveStatus, LevelStatus

TCB_INFO_VERSION = 3
MAX_LEVELS = 1_000
MAX_ADVISORIES = 1_000

_WHAT = "TCB info"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformLevel:
    """One level of a platform: whoever is at least here has this status.

    Attributes:
        sgx_svns: The 16 component SVNs that are needed.
        pce_svn: The SVN of the certification enclave that is needed.
        tdx_svns: The 16 TDX component SVNs that are needed; empty for SGX.
        status: How current that is.
        date: Until when the level is known to be safe, aware.
        advisory_ids: Intel's advisories that apply there.
    """

    sgx_svns: tuple[int, ...]
    pce_svn: int
    tdx_svns: tuple[int, ...]
    status: LevelStatus
    date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveLevel:
    """One level of the quoting enclave or of the TDX module.

    Attributes:
        isv_svn: The security version that is needed.
        status: How current that is.
        date: Until when the level is known to be safe, aware.
        advisory_ids: Intel's advisories that apply there.
    """

    isv_svn: int
    status: EnclaveStatus
    date: datetime
    advisory_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxModule:
    """Who may have signed the TDX module, and how it must run.

    Attributes:
        mr_signer: 48 bytes.
        attributes: 8 bytes.
        attributes_mask: 8 bytes.
        levels: Highest first; empty for the module that has no identity of its own.
    """

    mr_signer: bytes
    attributes: bytes
    attributes_mask: bytes
    levels: tuple[EnclaveLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbInfo:
    """What was said of one platform family; NOTHING in it is verified.

    Attributes:
        tee: Kind of environment it is for.
        fmspc: The platform family, 6 bytes.
        pce_id: The certification enclave, 2 bytes.
        issue_date: Start of its validity, aware.
        next_update: End of its validity, aware.
        evaluation_number: Rises with each of Intel's rounds of TCB recovery.
        levels: Highest first; no two alike.
        tdx_module: The module of old TDX platforms; None for SGX.
        tdx_module_identities: Modules by major version.
    """

    tee: Tee
    fmspc: bytes
    pce_id: bytes
    issue_date: datetime
    next_update: datetime
    evaluation_number: int
    levels: tuple[PlatformLevel, ...]
    tdx_module: TdxModule | None
    tdx_module_identities: dict[int, TdxModule]


class _Component(msgspec.Struct, frozen=True):
    svn: Svn8


_Components = Annotated[
    tuple[_Component, ...], msgspec.Meta(min_length=16, max_length=16)
]
_Advisories = Annotated[tuple[AdvisoryId, ...], msgspec.Meta(max_length=MAX_ADVISORIES)]


class _Tcb(msgspec.Struct, frozen=True):
    sgx: _Components = msgspec.field(name="sgxtcbcomponents")
    pce_svn: Svn16 = msgspec.field(name="pcesvn")
    tdx: _Components | None = msgspec.field(name="tdxtcbcomponents", default=None)


class _Level(msgspec.Struct, frozen=True):
    tcb: _Tcb
    date: Timestamp = msgspec.field(name="tcbDate")
    status: LevelStatus = msgspec.field(name="tcbStatus")
    advisory_ids: _Advisories = msgspec.field(name="advisoryIDs", default=())


class _ModuleTcb(msgspec.Struct, frozen=True):
    isv_svn: Svn8 = msgspec.field(name="isvsvn")


class _ModuleLevel(msgspec.Struct, frozen=True):
    tcb: _ModuleTcb
    date: Timestamp = msgspec.field(name="tcbDate")
    status: EnclaveStatus = msgspec.field(name="tcbStatus")
    advisory_ids: _Advisories = msgspec.field(name="advisoryIDs", default=())


class _Module(msgspec.Struct, frozen=True):
    mr_signer: Hex48 = msgspec.field(name="mrsigner")
    attributes: Hex8
    attributes_mask: Hex8 = msgspec.field(name="attributesMask")


class _ModuleIdentity(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(pattern=r"\A[Tt][Dd][Xx]_[0-9A-Fa-f]{2}\Z")]
    mr_signer: Hex48 = msgspec.field(name="mrsigner")
    attributes: Hex8
    attributes_mask: Hex8 = msgspec.field(name="attributesMask")
    levels: Annotated[
        tuple[_ModuleLevel, ...], msgspec.Meta(min_length=1, max_length=MAX_LEVELS)
    ] = msgspec.field(name="tcbLevels")


class _TcbInfo(msgspec.Struct, frozen=True):
    id: Literal["SGX", "TDX"]
    version: Literal[3]
    issue_date: Timestamp = msgspec.field(name="issueDate")
    next_update: Timestamp = msgspec.field(name="nextUpdate")
    fmspc: Hex6
    pce_id: Hex2 = msgspec.field(name="pceId")
    tcb_type: Literal[0] = msgspec.field(name="tcbType")
    evaluation_number: Number32 = msgspec.field(name="tcbEvaluationDataNumber")
    levels: Annotated[
        tuple[_Level, ...], msgspec.Meta(min_length=1, max_length=MAX_LEVELS)
    ] = msgspec.field(name="tcbLevels")
    module: _Module | None = msgspec.field(name="tdxModule", default=None)
    module_identities: (
        Annotated[
            tuple[_ModuleIdentity, ...],
            msgspec.Meta(min_length=1, max_length=0xFF + 1),
        ]
        | None
    ) = msgspec.field(name="tdxModuleIdentities", default=None)


def parse_tcb_info(unverified_text: bytes) -> TcbInfo:
    """Returns what a TCB info says; believes none of it.

    Args:
        unverified_text: The document, as it was signed.

    Raises:
        VerificationError: If it is not of version 3 and complete, an SVN is out of
            range, a status is unknown, or two levels are alike (step 4).
    """
    document = read_document(unverified_text, _TcbInfo, what=_WHAT)
    tee: Tee = "sgx" if document.id == "SGX" else "tdx"
    _require_tdx_parts(document, tee)
    module = document.module
    return TcbInfo(
        tee=tee,
        fmspc=bytes.fromhex(document.fmspc),
        pce_id=bytes.fromhex(document.pce_id),
        issue_date=timestamp(document.issue_date, what=_WHAT),
        next_update=timestamp(document.next_update, what=_WHAT),
        evaluation_number=document.evaluation_number,
        levels=_platform_levels(document.levels),
        tdx_module=None if module is None else _module(module, levels=()),
        tdx_module_identities=_identities(document.module_identities or ()),
    )


def _require_tdx_parts(document: _TcbInfo, tee: Tee) -> None:
    """TCB info for TDX has TDX components and a module; for SGX it has neither."""
    tdx = tee == "tdx"
    if (document.module is not None) != tdx or (
        not tdx and document.module_identities is not None
    ):
        raise malformed(_WHAT, "a TDX module, exactly where it is for TDX")
    if any((level.tcb.tdx is not None) != tdx for level in document.levels):
        raise malformed(_WHAT, "TDX components, exactly where it is for TDX")


def _platform_levels(levels: tuple[_Level, ...]) -> tuple[PlatformLevel, ...]:
    """Returns the levels in Intel's order, which is not the document's.

    Intel's library sorts by the SGX components, then the PCE's SVN, then the TDX
    components, highest first, and refuses two levels that are alike.
    """
    parsed = sorted(
        (
            PlatformLevel(
                sgx_svns=tuple(component.svn for component in level.tcb.sgx),
                pce_svn=level.tcb.pce_svn,
                tdx_svns=tuple(component.svn for component in level.tcb.tdx or ()),
                status=level.status,
                date=timestamp(level.date, what=_WHAT),
                advisory_ids=level.advisory_ids,
            )
            for level in levels
        ),
        key=_rank,
        reverse=True,
    )
    if len({_rank(level) for level in parsed}) != len(parsed):
        raise malformed(_WHAT, "two levels are alike")
    return tuple(parsed)


def _rank(level: PlatformLevel) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    return level.sgx_svns, level.pce_svn, level.tdx_svns


def _identities(identities: tuple[_ModuleIdentity, ...]) -> dict[int, TdxModule]:
    parsed = {
        int(identity.id[-2:], 16): _module(
            identity, levels=_module_levels(identity.levels)
        )
        for identity in identities
    }
    if len(parsed) != len(identities):
        raise malformed(_WHAT, "two module identities are alike")
    return parsed


def _module_levels(levels: tuple[_ModuleLevel, ...]) -> tuple[EnclaveLevel, ...]:
    """Returns the levels highest first, as Intel's library sorts them."""
    by_svn = {
        level.tcb.isv_svn: EnclaveLevel(
            isv_svn=level.tcb.isv_svn,
            status=level.status,
            date=timestamp(level.date, what=_WHAT),
            advisory_ids=level.advisory_ids,
        )
        for level in levels
    }
    if len(by_svn) != len(levels):
        raise malformed(_WHAT, "two levels of a module are alike")
    return tuple(by_svn[svn] for svn in sorted(by_svn, reverse=True))


def _module(
    module: _Module | _ModuleIdentity, *, levels: tuple[EnclaveLevel, ...]
) -> TdxModule:
    return TdxModule(
        mr_signer=bytes.fromhex(module.mr_signer),
        attributes=bytes.fromhex(module.attributes),
        attributes_mask=bytes.fromhex(module.attributes_mask),
        levels=levels,
    )
