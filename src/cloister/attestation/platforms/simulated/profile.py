"""The machine that is simulated: numbers that quotes and collateral share.

Chosen so that stock DCAP verifiers judge it up to date; `Machine` varies them, for
tests. Its FMSPC lies outside what Intel gives out (no processor family starts with FF),
so it cannot be confused with a real platform in a log or an allow-list.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A simulated machine; the defaults are the one that nodes have.

    Attributes:
        fmspc: Platform family, 6 bytes.
        pce_id: Certification enclave, 2 bytes.
        component_svns: The 16 component SVNs.
        pce_svn: Security version of the certification enclave.
        platform_instance: Whether the PCK names an instance and its configuration, as
            under the Platform CA.
        enclave_flags: An enclave's ATTRIBUTES flags.
        td_flags: A trust domain's TDATTRIBUTES.
        tee_tcb_svn: What a trust domain was started on, 16 bytes.
        tee_tcb_svn2: What is loaded now, 16 bytes; only in TD reports 1.5.
        mrsignerseam: Signer of the TDX module, 48 bytes.
        seam_attributes: Attributes of the TDX module, 8 bytes.
        mrservicetd: Measurement of a service TD, 48 bytes; only in TD reports 1.5.
        qe_svn: Security version of the quoting enclave; None for the profile's.
        qe_prod_id: Product number of the quoting enclave; None likewise.
        qe_signer: Signer of the quoting enclave, 32 bytes.
        qe_flags: The quoting enclave's ATTRIBUTES flags.
        qe_misc_select: The quoting enclave's MISCSELECT.
    """

    fmspc: bytes = FMSPC
    pce_id: bytes = PCE_ID
    component_svns: tuple[int, ...] = COMPONENT_SVNS
    pce_svn: int = PCE_SVN
    platform_instance: bool = True
    enclave_flags: int = ENCLAVE_FLAGS
    td_flags: int = TD_FLAGS
    tee_tcb_svn: bytes = TEE_TCB_SVN
    tee_tcb_svn2: bytes = TEE_TCB_SVN
    mrsignerseam: bytes = MRSIGNERSEAM
    seam_attributes: bytes = SEAM_ATTRIBUTES
    mrservicetd: bytes = bytes(48)
    qe_svn: int | None = None
    qe_prod_id: int | None = None
    qe_signer: bytes = QE_SIGNER
    qe_flags: int = QE_FLAGS
    qe_misc_select: int = 0

    def quoting_enclave(self, tee: Tee) -> QuotingEnclave:
        """Returns the enclave that signs this machine's quotes for `tee`."""
        enclave = QUOTING_ENCLAVES[tee]
        return QuotingEnclave(
            identity=enclave.identity,
            mr_enclave=enclave.mr_enclave,
            isv_prod_id=enclave.isv_prod_id
            if self.qe_prod_id is None
            else self.qe_prod_id,
            isv_svn=enclave.isv_svn if self.qe_svn is None else self.qe_svn,
        )


MACHINE = Machine()
