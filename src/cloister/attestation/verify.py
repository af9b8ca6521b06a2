"""Verification: is the evidence genuine? Intel's DCAP algorithm, by its ten steps.

 1. Format: version, key type, TEE, vendor, certification data, exact lengths.
 2. PCK chain: root is the trusted one; CA issued by root; leaf issued by CA; names,
    roles, extensions, validity.
 3. Revocation: root CA CRL and PCK CRL, signed, in date; CA and leaf not on them.
 4. TCB info and QE identity: signed by the TCB signing certificate, in date.
 5. TCB info is for this TEE, FMSPC and PCEID.
 6. TDX module: identity, signer and attributes.
 7. QE report: signed by the PCK, and binding the attestation key.
 8. QE report against the QE identity.
 9. Quote signature over header and body by the attestation key.
10. TCB level and its convergence with the module's and the QE's.

`docs/spec/verification.md` says what each of them implies. Step 1 is
`evidence.parse_evidence`; the others are called here, in this order, and none can be
left out. Nothing is fetched: collateral, root and time are arguments.

Whether the claims are wanted (measurement, debug, TCB status, which root) is
`policy.appraise`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.attestation.collateral import Collateral
from cloister.attestation.evidence import Evidence
from cloister.attestation.evidence_signatures import check_quote_signature
from cloister.attestation.pck_chain import PckChain, verified_pck_chain
from cloister.attestation.quoting_enclave import check_qe_report, matched_qe_level
from cloister.attestation.reports import SgxReport, TdReport
from cloister.attestation.revocation import check_revocation
from cloister.attestation.signed_collateral import check_signed_collateral
from cloister.attestation.tcb_info import TcbInfo
from cloister.attestation.tcb_level import TcbVerdict, concluded_tcb
from cloister.attestation.tdx_module import checked_tdx_module
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError


def verify_evidence(
    evidence: Evidence, *, collateral: Collateral, root: TrustRoot, at: datetime
) -> Claims:
    """Returns what the evidence says, if it is genuine under `root` at `at`.

    Does steps 2 to 10; step 1 was done by `parse_evidence`, which made the evidence.

    Args:
        evidence: A parsed quote.
        collateral: What Intel's services say of its platform; parsed, unverified. It
            may come from anybody, the prover included.
        root: The one root that is accepted.
        at: The time to verify for, aware.

    Raises:
        VerificationError: If any step fails; `step` and `code` say which.
        ValueError: If `at` is not aware; a bug of the caller.
    """
    if at.tzinfo is None:
        raise ValueError("at must be aware of its time zone")
    # (2) PCK chain to the trusted root.
    chain = verified_pck_chain(evidence.pck_chain_pem, root=root, at=at)
    # (3) Nothing in it is revoked.
    lists_end = check_revocation(collateral, chain=chain, root=root, at=at)
    # (4) TCB info and QE identity are signed and in date.
    documents_end = check_signed_collateral(
        collateral, anchor=chain.anchor, root=root, at=at
    )
    # (5) TCB info is for this platform.
    _check_tcb_info_is_for(evidence, chain, collateral.tcb_info)
    # (6) TDX module.
    module = (
        checked_tdx_module(evidence.report, collateral.tcb_info)
        if isinstance(evidence.report, TdReport)
        else None
    )
    # (7) QE report: signed by the PCK, binding the attestation key.
    check_qe_report(evidence, pck=chain.leaf)
    # (8) QE report against the QE identity.
    qe_level = matched_qe_level(evidence, collateral.qe_identity)
    # (9) Quote signature by the attestation key.
    check_quote_signature(evidence)
    # (10) TCB level, converged.
    tcb = concluded_tcb(
        evidence.report,
        platform=chain.platform,
        tcb_info=collateral.tcb_info,
        module=module,
        qe_level=qe_level,
    )
    return _claims(
        evidence,
        chain=chain,
        collateral=collateral,
        tcb=tcb,
        root=root,
        validity=(at, min(chain.not_after, lists_end, documents_end)),
    )


def _check_tcb_info_is_for(
    evidence: Evidence, chain: PckChain, tcb_info: TcbInfo
) -> None:
    """Step 5."""
    platform = chain.platform
    for what, code, expected, got in (
        ("TEE", "tcb-info-tee", evidence.tee, tcb_info.tee),
        ("FMSPC", "tcb-info-fmspc", platform.fmspc.hex(), tcb_info.fmspc.hex()),
        ("PCEID", "tcb-info-pceid", platform.pce_id.hex(), tcb_info.pce_id.hex()),
    ):
        if got != expected:
            raise VerificationError(
                f"TCB info is for another {what}",
                code=code,
                expected=expected,
                got=got,
                remedy="fetch the collateral of this platform",
                step=5,
            )


def _claims(
    evidence: Evidence,
    *,
    chain: PckChain,
    collateral: Collateral,
    tcb: TcbVerdict,
    root: TrustRoot,
    validity: tuple[datetime, datetime],
) -> Claims:
    platform = chain.platform
    instance = platform.platform_instance_id
    numbers = (
        collateral.tcb_info.evaluation_number,
        collateral.qe_identity.evaluation_number,
    )
    return Claims(
        tee=evidence.tee,
        quote_version=evidence.version,
        measurements=_measurements(evidence.report),
        attributes=evidence.report.attributes,
        debug=evidence.report.attributes.debug,
        report_data=evidence.report.report_data,
        fmspc=platform.fmspc.hex().upper(),
        ppid=platform.ppid.hex(),
        platform_instance_id=None if instance is None else instance.hex(),
        sgx_type=platform.sgx_type,
        dynamic_platform=platform.dynamic_platform,
        cached_keys=platform.cached_keys,
        smt_enabled=platform.smt,
        tcb_status=tcb.status,
        tcb_date=tcb.date,
        advisory_ids=tcb.advisory_ids,
        tcb_evaluation_number=min(numbers),
        tcb_info_evaluation_number=numbers[0],
        qe_identity_evaluation_number=numbers[1],
        root_kind=root.kind,
        root_sha256=root.sha256,
        verified_at=validity[0].astimezone(UTC),
        collateral_issued_at=max(
            collateral.tcb_info.issue_date, collateral.qe_identity.issue_date
        ),
        not_after=validity[1].astimezone(UTC),
    )


def _measurements(report: SgxReport | TdReport) -> SgxMeasurements | TdxMeasurements:
    if isinstance(report, SgxReport):
        return SgxMeasurements(
            mr_enclave=report.mr_enclave.hex(),
            mr_signer=report.mr_signer.hex(),
            isv_prod_id=report.isv_prod_id,
            isv_svn=report.isv_svn,
            isv_ext_prod_id=report.isv_ext_prod_id.hex(),
            isv_family_id=report.isv_family_id.hex(),
            config_id=report.config_id.hex(),
            config_svn=report.config_svn,
            misc_select=report.misc_select,
            cpu_svn=report.cpu_svn.hex(),
        )
    return TdxMeasurements(
        mrtd=report.mrtd.hex(),
        rtmr0=report.rtmr0.hex(),
        rtmr1=report.rtmr1.hex(),
        rtmr2=report.rtmr2.hex(),
        rtmr3=report.rtmr3.hex(),
        mrconfigid=report.mrconfigid.hex(),
        mrowner=report.mrowner.hex(),
        mrownerconfig=report.mrownerconfig.hex(),
        mrseam=report.mrseam.hex(),
        mrsignerseam=report.mrsignerseam.hex(),
        seam_attributes=report.seam_attributes.hex(),
        tee_tcb_svn=report.tee_tcb_svn.hex(),
        xfam=report.xfam,
        mrservicetd=_hex(report.mrservicetd),
        tee_tcb_svn2=_hex(report.tee_tcb_svn2),
    )


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()
