"""Policies and the reference's policy files, for tests of what reads and says them."""

from __future__ import annotations

from typing import Any

from tests.unit.attestation.example_claims import SGX, TDX

from cloister.attestation.policy_schema import NO_SERVICE_TD, Policy
from cloister.attestation.reference_values import (
    SgxExactReference,
    SgxReference,
    TdxReference,
)

SIMULATED = f"simulated:sha256:{'5' * 64}"
ENCLAVE = SgxReference(mr_enclave="a" * 64)
PRODUCT = SgxReference(mr_signer="b" * 64, isv_prod_id=1, min_isv_svn=2)
EXACT = SgxExactReference(
    mr_enclave="a" * 64, mr_signer="b" * 64, isv_prod_id=1, isv_svn=2
)
DOMAIN = TdxReference(
    mrtd="a" * 96,
    rtmr0="b" * 96,
    rtmr1="c" * 96,
    rtmr2="d" * 96,
    rtmr3="e" * 96,
    mrconfigid="f" * 96,
    mrowner="1" * 96,
    mrownerconfig="2" * 96,
    mrseam="3" * 96,
    mrsignerseam="4" * 96,
)
FULL = Policy(
    root=SIMULATED,
    sgx=(ENCLAVE, PRODUCT),
    sgx_exact=(EXACT,),
    tdx=(DOMAIN,),
    tcb_statuses=("UpToDate", "OutOfDate"),
    accepted_advisories=("INTEL-SA-00615", "INTEL-SA-00289"),
    tcb_grace_days=30,
    min_tcb_evaluation_number=17,
    debug="accepted-insecurely",
    sept_ve_disable="any",
    mrservicetd=(NO_SERVICE_TD, "7" * 96),
    platforms=("1" * 32, "2" * 32),
    legacy_certificates="accepted",
)
STRICT = Policy(root=SIMULATED, sgx=(SgxReference(mr_enclave="a" * 64),))
OPEN = Policy(
    root="hardware",
    sgx=(SgxReference(mr_signer="b" * 64, isv_prod_id=3, min_isv_svn=7),),
    sgx_exact=(
        SgxExactReference(mr_signer="c" * 64),
        SgxExactReference(mr_enclave="d" * 64, isv_svn=2),
    ),
    tdx=(
        TdxReference(
            mrtd="a" * 96,
            rtmr0="b" * 96,
            rtmr1="c" * 96,
            rtmr2="d" * 96,
            mrseam="3" * 96,
        ),
    ),
    tcb_statuses=("UpToDate", "SWHardeningNeeded", "OutOfDate"),
    accepted_advisories=("INTEL-SA-00615", "INTEL-SA-00289"),
    tcb_grace_days=90,
    min_tcb_evaluation_number=17,
    debug="accepted-insecurely",
    sept_ve_disable="any",
    mrservicetd=(NO_SERVICE_TD, "7" * 96),
    platforms="any",
    legacy_certificates="accepted",
)

SGX_KEYS = ("mr_enclave", "mr_signer", "isv_prod_id", "isv_svn")
# Key in the file, and what our measurements call it.
TDX_KEYS = {
    "mr_seam": "mrseam",
    "mrsigner_seam": "mrsignerseam",
    "mr_td": "mrtd",
    "mr_config_id": "mrconfigid",
    "mr_owner": "mrowner",
    "mr_owner_config": "mrownerconfig",
    "rt_mr0": "rtmr0",
    "rt_mr1": "rtmr1",
    "rt_mr2": "rtmr2",
    "rt_mr3": "rtmr3",
}
REQUIRED_TDX_KEYS = ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2")
Config = dict[str, Any]


def sgx_config(*on: str, entries: list[Config] | None = None) -> Config:
    """A file as CCZoo ships it, with some switches on."""
    entry = {
        "mr_enclave": SGX.mr_enclave,
        "mr_signer": SGX.mr_signer,
        "isv_prod_id": str(SGX.isv_prod_id),
        "isv_svn": str(SGX.isv_svn),
    }
    switches = {f"verify_{key}": "on" if key in on else "off" for key in SGX_KEYS}
    return {**switches, "sgx_mrs": [entry] if entries is None else entries}


def tdx_config(*on: str) -> Config:
    """A file as CCZoo's branch has it, with more switches on than the four."""
    wanted = {*REQUIRED_TDX_KEYS, *on}
    entry = {key: getattr(TDX, name) for key, name in TDX_KEYS.items()}
    switches = {f"verify_{key}": "on" if key in wanted else "off" for key in TDX_KEYS}
    return {**switches, "tdx_mrs": [entry]}
