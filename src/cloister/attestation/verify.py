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

Step 1 is `evidence.parse_evidence`, step 2 `pck_chain.verified_pck_chain`; steps 7 and
9 are here.

Steps 3, 4, 5, 6, 8 and 10 need Intel's collateral and are NOT done yet: a revoked
platform, an outdated one, or a quoting enclave that Intel did not write is not noticed.
Until they are, evidence under the hardware root proves that a key certified by Intel
signed the QE report, and no more; under a simulated root nothing more could be proved.

Whether the claims are wanted (measurement, debug, which root) is `policy.appraise`.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.attestation.certificates import Certificate
from cloister.attestation.claims import Claims, SgxMeasurements, TdxMeasurements
from cloister.attestation.evidence import Evidence
from cloister.attestation.pck_chain import PckChain, verified_pck_chain
from cloister.attestation.reports import SgxReport, TdReport
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError

_COORDINATE_BYTES = 32


def verify_evidence(evidence: Evidence, *, root: TrustRoot, at: datetime) -> Claims:
    """Returns what the evidence says, if it is genuine under `root` at `at`.

    1. Format: done by `parse_evidence`, which made the evidence.
    2. PCK chain.
    7. QE report.
    9. Quote signature.

    Steps 3, 4, 5, 6, 8 and 10 are not done; see the top of this file.

    Args:
        evidence: A parsed quote.
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
    # (7) QE report: signed by the PCK, binding the attestation key.
    _check_qe_report(evidence, pck=chain.leaf)
    # (9) Quote signature by the attestation key.
    _check_quote_signature(evidence)
    return _claims(evidence, chain=chain, root=root)


def _check_qe_report(evidence: Evidence, *, pck: Certificate) -> None:
    """Step 7."""
    _check_signature(
        pck.public_key,
        signature=evidence.qe_signature,
        signed=evidence.qe_report_bytes,
        what="QE report is not signed by the PCK",
        code="qe-report-signature",
        step=7,
    )
    digest = hashlib.sha256(evidence.attestation_key + evidence.qe_auth).digest()
    # Intel's library looks at the first half only; zeros are what every quoting
    # enclave writes after it, and a second reading of this field helps nobody.
    expected = digest + bytes(len(evidence.qe_report.report_data) - len(digest))
    if evidence.qe_report.report_data != expected:
        raise VerificationError(
            "QE report does not bind the attestation key",
            code="qe-report-binding",
            expected=expected.hex(),
            got=evidence.qe_report.report_data.hex(),
            step=7,
        )


def _check_quote_signature(evidence: Evidence) -> None:
    """Step 9."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + evidence.attestation_key
        )
    except ValueError as error:
        raise VerificationError(
            "attestation key is no point of P-256", code="attestation-key", step=9
        ) from error
    _check_signature(
        key,
        signature=evidence.signature,
        signed=evidence.signed_bytes,
        what="quote is not signed by its attestation key",
        code="quote-signature",
        step=9,
    )


def _check_signature(
    key: ec.EllipticCurvePublicKey,
    *,
    signature: bytes,
    signed: bytes,
    what: str,
    code: str,
    step: int,
) -> None:
    r = int.from_bytes(signature[:_COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[_COORDINATE_BYTES:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise VerificationError(what, code=code, step=step) from error


def _claims(evidence: Evidence, *, chain: PckChain, root: TrustRoot) -> Claims:
    platform = chain.platform
    instance = platform.platform_instance_id
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
        root_kind=root.kind,
        root_sha256=root.sha256,
        not_after=chain.not_after.astimezone(UTC),
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
    )
