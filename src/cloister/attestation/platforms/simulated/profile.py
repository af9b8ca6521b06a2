"""The one machine that is simulated: numbers that quotes and collateral share.

Chosen so that stock DCAP verifiers judge it up to date. Its FMSPC lies outside what
Intel gives out (no processor family starts with FF), so it cannot be confused with a
real platform in a log or an allow-list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cloister.attestation.reports import (
    SGX_FLAG_INIT,
    SGX_FLAG_MODE64,
    SGX_FLAG_PROVISION_KEY,
    TD_FLAG_SEPT_VE_DISABLE,
    Tee,
)

FMSPC = bytes.fromhex("ff53494d0001")
PCE_ID = bytes(2)
PCE_SVN = 13
COMPONENT_SVNS = (7, 7, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0)
CPU_SVN = bytes(COMPONENT_SVNS)

# TDX module: security version 5 of major version 1, SEAM loader 2.
TDX_MODULE_SVN = 5
TDX_MODULE_MAJOR = 1
TEE_TCB_SVN = bytes([TDX_MODULE_SVN, TDX_MODULE_MAJOR, 2]) + bytes(13)
MRSEAM = hashlib.sha384(b"simulated TDX module").digest()
# Intel's own module has zeros here, and verifiers demand them.
MRSIGNERSEAM = bytes(48)
SEAM_ATTRIBUTES = bytes(8)

ENCLAVE_FLAGS = SGX_FLAG_INIT | SGX_FLAG_MODE64
ENCLAVE_XFRM = 0xE7
TD_FLAGS = TD_FLAG_SEPT_VE_DISABLE
TD_XFAM = 0x618E7

QE_FLAGS = SGX_FLAG_INIT | SGX_FLAG_MODE64 | SGX_FLAG_PROVISION_KEY
QE_XFRM = 0xE7
QE_SIGNER = hashlib.sha256(b"simulated quoting enclave signer").digest()
TCB_EVALUATION_NUMBER = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotingEnclave:
    """The enclave that signs quotes of one kind.

    Attributes:
        identity: Its name in Intel's QE identity.
        mr_enclave: Its measurement, 32 bytes.
        isv_prod_id: Its product number.
        isv_svn: Its security version.
    """

    identity: str
    mr_enclave: bytes
    isv_prod_id: int
    isv_svn: int


QUOTING_ENCLAVES: dict[Tee, QuotingEnclave] = {
    "sgx": QuotingEnclave(
        identity="QE",
        mr_enclave=hashlib.sha256(b"simulated QE").digest(),
        isv_prod_id=1,
        isv_svn=8,
    ),
    "tdx": QuotingEnclave(
        identity="TD_QE",
        mr_enclave=hashlib.sha256(b"simulated TD QE").digest(),
        isv_prod_id=2,
        isv_svn=4,
    ),
}
