"""The body of a quote: an SGX report or a TD report, byte for byte.

Follows Intel's SGX DCAP ECDSA Quote Library API and TDX DCAP Quoting Library API
(`sgx_report_body_t`, `sgx_report2_body_t`, `sgx_report2_body_v1_5_t`), all integers
little endian. Nothing here is verified; reserved bytes are not looked at, for the
quote's signature covers them.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from typing import Literal

from cloister.errors import VerificationError

Tee = Literal["sgx", "tdx"]

REPORT_DATA_BYTES = 64
SGX_REPORT_BYTES = 384
TD_REPORT_BYTES = 584
TD_REPORT_15_BYTES = 648

SGX_FLAG_INIT = 1 << 0
SGX_FLAG_DEBUG = 1 << 1
SGX_FLAG_MODE64 = 1 << 2
SGX_FLAG_PROVISION_KEY = 1 << 4
SGX_FLAG_EINIT_TOKEN_KEY = 1 << 5
SGX_FLAG_KSS = 1 << 7

TD_FLAG_DEBUG = 1 << 0
TD_FLAG_SEPT_VE_DISABLE = 1 << 28
TD_FLAG_MIGRATABLE = 1 << 29
TD_FLAG_PKS = 1 << 30
TD_FLAG_KEY_LOCKER = 1 << 31
TD_FLAG_PERFMON = 1 << 63
# TDATTRIBUTES bits 7:0 are the TUD group: any of them set makes the TD untrusted,
# bit 0 is the debug bit known today (Intel TDX Module ABI, TD_ATTRIBUTES).
TD_FLAGS_UNTRUSTED = 0xFF

SGX_LAYOUT = struct.Struct("<16sI12x16sQQ32s32x32s32x64sHHH42x16s64s")
TD_LAYOUT = struct.Struct("<16s48s48s8sQQ48s48s48s48s48s48s48s48s64s")
# What report 1.5 has after the fields of 1.0: TEE_TCB_SVN_2 and MRSERVICETD.
TD_15_LAYOUT = struct.Struct("<16s48s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxAttributes:
    """An enclave's ATTRIBUTES field.

    Attributes:
        flags: The 64 flag bits.
        xfrm: The extended features the enclave runs with.
    """

    flags: int
    xfrm: int

    @property
    def debug(self) -> bool:
        """Whether the host can read and change the enclave's memory."""
        return bool(self.flags & SGX_FLAG_DEBUG)

    @property
    def initialised(self) -> bool:
        """Whether the enclave's measurement was complete (EINIT done)."""
        return bool(self.flags & SGX_FLAG_INIT)

    @property
    def mode64(self) -> bool:
        """Whether the enclave runs in 64-bit mode."""
        return bool(self.flags & SGX_FLAG_MODE64)

    @property
    def provision_key(self) -> bool:
        """Whether the enclave may derive the provisioning key."""
        return bool(self.flags & SGX_FLAG_PROVISION_KEY)

    @property
    def einit_token_key(self) -> bool:
        """Whether the enclave may derive the launch key."""
        return bool(self.flags & SGX_FLAG_EINIT_TOKEN_KEY)

    @property
    def kss(self) -> bool:
        """Whether key separation and sharing is on."""
        return bool(self.flags & SGX_FLAG_KSS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdAttributes:
    """A trust domain's TDATTRIBUTES field.

    Attributes:
        flags: The 64 flag bits.
    """

    flags: int

    @property
    def debug(self) -> bool:
        """Whether any bit of the untrusted group is set, debug among them."""
        return bool(self.flags & TD_FLAGS_UNTRUSTED)

    @property
    def sept_ve_disable(self) -> bool:
        """Whether the host cannot provoke exceptions by taking pages away."""
        return bool(self.flags & TD_FLAG_SEPT_VE_DISABLE)

    @property
    def migratable(self) -> bool:
        """Whether the TD may be moved to another machine by a service TD."""
        return bool(self.flags & TD_FLAG_MIGRATABLE)

    @property
    def protection_keys(self) -> bool:
        """Whether supervisor protection keys are on."""
        return bool(self.flags & TD_FLAG_PKS)

    @property
    def key_locker(self) -> bool:
        """Whether Key Locker is on."""
        return bool(self.flags & TD_FLAG_KEY_LOCKER)

    @property
    def perfmon(self) -> bool:
        """Whether performance counters are usable in the TD."""
        return bool(self.flags & TD_FLAG_PERFMON)


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxReport:
    """An SGX report body; fields are named as in Intel's `sgx_report_body_t`."""

    cpu_svn: bytes
    misc_select: int
    isv_ext_prod_id: bytes
    attributes: SgxAttributes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """A TD report body, named as in Intel's `sgx_report2_body_t`.

    The last two are of version 1.5; None in 1.0.
    """

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    attributes: TdAttributes
    xfam: int
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None


def parse_sgx_report(unverified_body: bytes) -> SgxReport:
    """Returns the fields of an SGX report body; believes none of them.

    Args:
        unverified_body: Exactly 384 bytes.

    Raises:
        VerificationError: If the length is another one (step 1).
    """
    _require_length(unverified_body, SGX_REPORT_BYTES, "an SGX report body")
    (
        cpu_svn,
        misc_select,
        isv_ext_prod_id,
        flags,
        xfrm,
        mr_enclave,
        mr_signer,
        config_id,
        isv_prod_id,
        isv_svn,
        config_svn,
        isv_family_id,
        report_data,
    ) = SGX_LAYOUT.unpack(unverified_body)
    return SgxReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=SgxAttributes(flags=flags, xfrm=xfrm),
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=isv_family_id,
        report_data=report_data,
    )


def parse_td_report(unverified_body: bytes) -> TdReport:
    """Returns the fields of a TD report body 1.0; believes none of them.

    Args:
        unverified_body: Exactly 584 bytes.

    Raises:
        VerificationError: If the length is another one (step 1).
    """
    _require_length(unverified_body, TD_REPORT_BYTES, "a TD report body")
    fields = TD_LAYOUT.unpack(unverified_body)
    return TdReport(
        tee_tcb_svn=fields[0],
        mrseam=fields[1],
        mrsignerseam=fields[2],
        seam_attributes=fields[3],
        attributes=TdAttributes(flags=fields[4]),
        xfam=fields[5],
        mrtd=fields[6],
        mrconfigid=fields[7],
        mrowner=fields[8],
        mrownerconfig=fields[9],
        rtmr0=fields[10],
        rtmr1=fields[11],
        rtmr2=fields[12],
        rtmr3=fields[13],
        report_data=fields[14],
    )


def parse_td_report_15(unverified_body: bytes) -> TdReport:
    """Returns the fields of a TD report body 1.5; believes none of them.

    Args:
        unverified_body: Exactly 648 bytes.

    Raises:
        VerificationError: If the length is another one (step 1).
    """
    _require_length(unverified_body, TD_REPORT_15_BYTES, "a TD report body 1.5")
    tee_tcb_svn2, mrservicetd = TD_15_LAYOUT.unpack(unverified_body[TD_REPORT_BYTES:])
    return dataclasses.replace(
        parse_td_report(unverified_body[:TD_REPORT_BYTES]),
        tee_tcb_svn2=tee_tcb_svn2,
        mrservicetd=mrservicetd,
    )


def _require_length(body: bytes, length: int, what: str) -> None:
    if len(body) != length:
        raise VerificationError(
            f"{what} has the wrong length",
            code="report-length",
            expected=f"{length} bytes",
            got=f"{len(body)} bytes",
            step=1,
        )
