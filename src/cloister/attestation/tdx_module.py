"""Step 6 of verification: the TDX module is one that Intel signed.

Follows Intel's quote verification library (QuoteVerifier 4.1.2.4.11, TdxModuleCheck).
A module has an identity of its own since its major version, `tee_tcb_svn[1]`, is above
zero; older ones are described by the TCB info's `tdxModule` alone.
"""

from __future__ import annotations

from cloister.attestation.reports import TdReport
from cloister.attestation.tcb_info import TcbInfo, TdxModule
from cloister.errors import VerificationError

# Where a TEE TCB SVN has the module's security version and its major version.
MODULE_SVN, MODULE_MAJOR = 0, 1


def checked_tdx_module(report: TdReport, tcb_info: TcbInfo) -> TdxModule:
    """Returns the module that the report names, if its signer and attributes are right.

    (6.1) The identity is that of the report's major version.
    (6.2) MRSIGNERSEAM is that identity's.
    (6.3) SEAMATTRIBUTES are that identity's, and zero, whatever its mask leaves open.

    Args:
        report: The TD report.
        tcb_info: TCB info for TDX, verified by steps 4 and 5.

    Raises:
        VerificationError: If any of it fails (step 6).
    """
    # (6.1) Which module.
    module = module_of(report.tee_tcb_svn, tcb_info, step=6)
    # (6.2) Who signed it.
    if report.mrsignerseam != module.mr_signer:
        raise VerificationError(
            "TDX module has another signer",
            code="tdx-module-signer",
            expected=module.mr_signer.hex(),
            got=report.mrsignerseam.hex(),
            step=6,
        )
    # (6.3) How it runs.
    if any(report.seam_attributes) or report.seam_attributes != module.attributes:
        raise VerificationError(
            "TDX module has other attributes",
            code="tdx-module-attributes",
            expected=f"{module.attributes.hex()}, all zeros",
            got=report.seam_attributes.hex(),
            step=6,
        )
    return module


def module_of(tee_tcb_svn: bytes, tcb_info: TcbInfo, *, step: int) -> TdxModule:
    """Returns the module of the major version that a TEE TCB SVN names.

    Raises:
        VerificationError: If the TCB info has none (at `step`).
    """
    major = tee_tcb_svn[MODULE_MAJOR]
    if major == 0:
        module = tcb_info.tdx_module
        name = "tdxModule"
    else:
        module = tcb_info.tdx_module_identities.get(major)
        name = f"TDX_{major:02X}"
    if module is None:
        raise VerificationError(
            "TCB info does not know the TDX module",
            code="tdx-module-unknown",
            expected=" or ".join(
                f"TDX_{known:02X}" for known in sorted(tcb_info.tdx_module_identities)
            )
            or "no module with an identity of its own",
            got=name,
            remedy="fetch the collateral anew",
            step=step,
        )
    return module
