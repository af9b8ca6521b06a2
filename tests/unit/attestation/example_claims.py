"""Claims as verification would make them, for tests that only ask what is wanted."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.attestation.reports import (
    SGX_FLAG_INIT,
    SGX_FLAG_MODE64,
    TD_FLAG_SEPT_VE_DISABLE,
    SgxAttributes,
    TdAttributes,
    Tee,
)

ROOT_SHA256 = "5" * 64
ROOT = f"simulated:sha256:{ROOT_SHA256}"
PPID, INSTANCE = "1" * 32, "2" * 32
AT = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)

SGX = SgxMeasurements(
    mr_enclave="a" * 64,
    mr_signer="b" * 64,
    isv_prod_id=3,
    isv_svn=7,
    isv_ext_prod_id="0" * 32,
    isv_family_id="0" * 32,
    config_id="0" * 128,
    config_svn=0,
    misc_select=0,
    cpu_svn="0" * 32,
)
TDX = TdxMeasurements(
    mrtd="a" * 96,
    rtmr0="b" * 96,
    rtmr1="c" * 96,
    rtmr2="d" * 96,
    rtmr3="e" * 96,
    mrconfigid="f" * 96,
    mrowner="1" * 96,
    mrownerconfig="2" * 96,
    mrseam="3" * 96,
    mrsignerseam="0" * 96,
    seam_attributes="0" * 16,
    tee_tcb_svn="05010200000000000000000000000000",
    xfam=0x618E7,
    mrservicetd=None,
    tee_tcb_svn2=None,
)
SGX_ATTRIBUTES = SgxAttributes(flags=SGX_FLAG_INIT | SGX_FLAG_MODE64, xfrm=0xE7)
TD_ATTRIBUTES = TdAttributes(flags=TD_FLAG_SEPT_VE_DISABLE)


def example_claims(tee: Tee, **changes: Any) -> Claims:
    """Returns up-to-date claims of one kind, with `changes` made to them."""
    claims = Claims(
        tee=tee,
        quote_version=3 if tee == "sgx" else 4,
        measurements=SGX if tee == "sgx" else TDX,
        attributes=SGX_ATTRIBUTES if tee == "sgx" else TD_ATTRIBUTES,
        debug=False,
        report_data=bytes(64),
        fmspc="FF53494D0001",
        ppid=PPID,
        platform_instance_id=INSTANCE,
        sgx_type="scalable",
        dynamic_platform=None,
        cached_keys=None,
        smt_enabled=None,
        tcb_status="UpToDate",
        tcb_date=datetime(2026, 6, 1, tzinfo=UTC),
        advisory_ids=(),
        tcb_evaluation_number=17,
        tcb_info_evaluation_number=17,
        qe_identity_evaluation_number=17,
        root_kind="simulated",
        root_sha256=ROOT_SHA256,
        verified_at=AT,
        collateral_issued_at=AT,
        not_after=AT,
    )
    return dataclasses.replace(claims, **changes)
