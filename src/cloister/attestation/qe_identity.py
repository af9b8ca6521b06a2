"""QE identity: which enclave may quote, and how current each version of it is.

Follows the PCS API version 4, `GET /{sgx,tdx}/certification/v4/qe/identity`, enclave
identity version 2. Parsed, NOT verified: step 4 checks the signature, step 8 compares a
quoting enclave with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from cloister.attestation.signed_json import (
    AdvisoryId,
    Hex4,
    Hex16,
    Hex32,
    Number32,
    Svn16,
    Timestamp,
    read_document,
    timestamp,
)
from cloister.attestation.tcb_info import MAX_ADVISORIES, MAX_LEVELS, EnclaveLevel
from cloister.attestation.tcb_status import EnclaveStatus

_WHAT = "QE identity"

QeId = Literal["QE", "TD_QE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QeIdentity:
    """What was said of a quoting enclave; NOTHING in it is verified.

    Attributes:
        id: "QE" quotes for SGX, "TD_QE" for TDX.
        issue_date: Start of its validity, aware.
        next_update: End of its validity, aware.
        evaluation_number: Rises with each of Intel's rounds of TCB recovery.
        misc_select: What is left of MISCSELECT under the mask, 4 bytes.
        misc_select_mask: 4 bytes.
        attributes: What is left of ATTRIBUTES under the mask, 16 bytes.
        attributes_mask: 16 bytes.
        mr_signer: Who signed the enclave, 32 bytes.
        isv_prod_id: Its product number.
        levels: In the document's order, which counts.
    """

    id: QeId
    issue_date: datetime
    next_update: datetime
    evaluation_number: int
    misc_select: bytes
    misc_select_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[EnclaveLevel, ...]


class _Tcb(msgspec.Struct, frozen=True):
    isv_svn: Svn16 = msgspec.field(name="isvsvn")


class _Level(msgspec.Struct, frozen=True):
    tcb: _Tcb
    date: Timestamp = msgspec.field(name="tcbDate")
    status: EnclaveStatus = msgspec.field(name="tcbStatus")
    advisory_ids: Annotated[
        tuple[AdvisoryId, ...], msgspec.Meta(max_length=MAX_ADVISORIES)
    ] = msgspec.field(name="advisoryIDs", default=())


class _QeIdentity(msgspec.Struct, frozen=True):
    id: QeId
    version: Literal[2]
    issue_date: Timestamp = msgspec.field(name="issueDate")
    next_update: Timestamp = msgspec.field(name="nextUpdate")
    evaluation_number: Number32 = msgspec.field(name="tcbEvaluationDataNumber")
    misc_select: Hex4 = msgspec.field(name="miscselect")
    misc_select_mask: Hex4 = msgspec.field(name="miscselectMask")
    attributes: Hex16
    attributes_mask: Hex16 = msgspec.field(name="attributesMask")
    mr_signer: Hex32 = msgspec.field(name="mrsigner")
    isv_prod_id: Svn16 = msgspec.field(name="isvprodid")
    levels: Annotated[
        tuple[_Level, ...], msgspec.Meta(min_length=1, max_length=MAX_LEVELS)
    ] = msgspec.field(name="tcbLevels")


def parse_qe_identity(unverified_text: bytes) -> QeIdentity:
    """Returns what a QE identity says; believes none of it.

    Args:
        unverified_text: The document, as it was signed.

    Raises:
        VerificationError: If it is not of version 2 and complete, an SVN is out of
            range, or a status is unknown (step 4).
    """
    document = read_document(unverified_text, _QeIdentity, what=_WHAT)
    return QeIdentity(
        id=document.id,
        issue_date=timestamp(document.issue_date, what=_WHAT),
        next_update=timestamp(document.next_update, what=_WHAT),
        evaluation_number=document.evaluation_number,
        misc_select=bytes.fromhex(document.misc_select),
        misc_select_mask=bytes.fromhex(document.misc_select_mask),
        attributes=bytes.fromhex(document.attributes),
        attributes_mask=bytes.fromhex(document.attributes_mask),
        mr_signer=bytes.fromhex(document.mr_signer),
        isv_prod_id=document.isv_prod_id,
        levels=tuple(
            EnclaveLevel(
                isv_svn=level.tcb.isv_svn,
                status=level.status,
                date=timestamp(level.date, what=_WHAT),
                advisory_ids=level.advisory_ids,
            )
            for level in document.levels
        ),
    )
