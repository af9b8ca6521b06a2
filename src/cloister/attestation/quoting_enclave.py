"""Steps 7 and 8 of verification: the enclave that signed the quote is Intel's.

Follows Intel's quote verification library (QuoteVerifier 4.1.2.4.12 to 15,
EnclaveReportVerifier 4.1.2.9). Two things are checked beyond it: nothing follows the
binding in the report data, and the enclave is not in debug mode whatever the mask of
its identity leaves open.
"""

from __future__ import annotations

import hashlib

from cloister.attestation.certificates import Certificate
from cloister.attestation.evidence import Evidence
from cloister.attestation.qe_identity import QeId, QeIdentity
from cloister.attestation.reports import SgxAttributes, Tee
from cloister.attestation.signatures import check_signature
from cloister.attestation.tcb_info import EnclaveLevel
from cloister.errors import VerificationError

_QE_IDS: dict[Tee, QeId] = {"sgx": "QE", "tdx": "TD_QE"}


def check_qe_report(evidence: Evidence, *, pck: Certificate) -> None:
    """Checks the quoting enclave's report, which vouches for the attestation key.

    (7.1) The PCK signed it.
    (7.2) It binds the attestation key and the authentication data.

    Args:
        evidence: A parsed quote.
        pck: The PCK certificate, verified by steps 2 and 3.

    Raises:
        VerificationError: If any of it fails (step 7).
    """
    # (7.1) By whom.
    check_signature(
        pck.public_key,
        signature=evidence.qe_signature,
        signed=evidence.qe_report_bytes,
        what="QE report is not signed by the PCK",
        code="qe-report-signature",
        step=7,
    )
    # (7.2) For which key.
    digest = hashlib.sha256(evidence.attestation_key + evidence.qe_auth).digest()
    # Intel's library looks at the first half only; zeros are what every quoting
    # enclave writes after it, and a second reading of this field helps nobody.
    expected = digest + bytes(len(evidence.qe_report.report_data) - len(digest))
    if evidence.qe_report.report_data != expected:
        raise _refused(
            "QE report does not bind the attestation key",
            code="qe-report-binding",
            expected=expected.hex(),
            got=evidence.qe_report.report_data.hex(),
            step=7,
        )


def matched_qe_level(evidence: Evidence, identity: QeIdentity) -> EnclaveLevel | None:
    """Returns the level of the quoting enclave, if it is the one of the identity.

    (8.1) The identity is that of the enclave which quotes for this TEE.
    (8.2) MISCSELECT and ATTRIBUTES agree under the identity's masks; no debug.
    (8.3) Signer and product are the identity's.
    (8.4) The first level whose ISVSVN the enclave reaches; None if it reaches none,
        which step 10 refuses.

    Args:
        evidence: A parsed quote whose QE report has passed step 7.
        identity: The QE identity, verified by step 4.

    Raises:
        VerificationError: If any of it fails (step 8).
    """
    report = evidence.qe_report
    # (8.1) Which enclave is described.
    _require_equal(
        identity.id, _QE_IDS[evidence.tee], "QE identity", code="qe-identity-id"
    )
    # (8.2) How it runs.
    _require_equal(
        _and(report.misc_select.to_bytes(4, "little"), identity.misc_select_mask).hex(),
        identity.misc_select.hex(),
        "MISCSELECT",
        code="qe-misc-select",
    )
    _require_equal(
        _and(_raw_attributes(report.attributes), identity.attributes_mask).hex(),
        identity.attributes.hex(),
        "ATTRIBUTES",
        code="qe-attributes",
    )
    if report.attributes.debug:
        raise _refused(
            "quoting enclave runs in debug mode: whoever runs it has its keys",
            code="qe-debug",
            expected="debug off",
            step=8,
        )
    # (8.3) Whose it is.
    _require_equal(
        report.mr_signer.hex(), identity.mr_signer.hex(), "MRSIGNER", code="qe-signer"
    )
    _require_equal(
        report.isv_prod_id, identity.isv_prod_id, "ISVPRODID", code="qe-product"
    )
    # (8.4) How current it is.
    return next(
        (level for level in identity.levels if report.isv_svn >= level.isv_svn), None
    )


def _require_equal(
    got: str | int, expected: str | int, what: str, *, code: str
) -> None:
    if got != expected:
        raise _refused(
            f"{what} is not that of Intel's quoting enclave",
            code=code,
            expected=str(expected),
            got=str(got),
            step=8,
        )


def _raw_attributes(attributes: SgxAttributes) -> bytes:
    return attributes.flags.to_bytes(8, "little") + attributes.xfrm.to_bytes(
        8, "little"
    )


def _and(value: bytes, mask: bytes) -> bytes:
    return bytes(octet & bits for octet, bits in zip(value, mask, strict=True))


def _refused(
    what: str, *, code: str, step: int, expected: str = "", got: str = ""
) -> VerificationError:
    return VerificationError(what, code=code, expected=expected, got=got, step=step)
