"""Step 4 of verification: TCB info and QE identity are Intel's, and in date.

Follows Intel's quote verification library (TCBSigningChain, TCBInfoVerifier,
EnclaveIdentityVerifier), and checks the start of validity as well. The signer's role
is what stops the owner of one extracted PCK key from writing collateral of his own.
"""

from __future__ import annotations

from datetime import datetime

from cloister.attestation.certificates import Certificate
from cloister.attestation.collateral import Collateral
from cloister.attestation.issuer_chain import IssuerChain
from cloister.attestation.pck_chain import check_trusted_root
from cloister.attestation.signatures import check_signature
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError

SIGNING_PHRASE = "SGX TCB Signing"


def check_signed_collateral(
    collateral: Collateral, *, anchor: Certificate, root: TrustRoot, at: datetime
) -> datetime:
    """Checks that both documents are genuine under `root` and in date at `at`.

    (4.1) The signer is the TCB signing certificate: named so, no authority, issued by
        the trusted root itself, valid, not on the root CA CRL.
    (4.2) Its signature covers the exact text of the document.
    (4.3) The document was issued, and its next update is not yet due.

    Args:
        collateral: The documents; its root CA CRL has passed step 3.
        anchor: The trusted root, parsed.
        root: The one root that is accepted.
        at: The time to verify for, aware.

    Returns:
        When the first thing that was checked here expires, aware.

    Raises:
        VerificationError: If any of it fails (step 4).
    """
    documents = (
        (
            "tcb-info",
            "TCB info",
            collateral.tcb_info_text,
            collateral.tcb_info_signature,
            collateral.tcb_info_issuer_chain,
            (collateral.tcb_info.issue_date, collateral.tcb_info.next_update),
        ),
        (
            "qe-identity",
            "QE identity",
            collateral.qe_identity_text,
            collateral.qe_identity_signature,
            collateral.qe_identity_issuer_chain,
            (collateral.qe_identity.issue_date, collateral.qe_identity.next_update),
        ),
    )
    genuine: set[bytes] = set()
    expiries: list[datetime] = []
    for code, what, text, signature, issuer_chain, validity in documents:
        # (4.1) Who signed; the two documents have the same signer as a rule.
        if issuer_chain.pem not in genuine:
            _check_signer(
                issuer_chain, what, collateral, anchor=anchor, root=root, at=at
            )
            genuine.add(issuer_chain.pem)
        # (4.2) What was signed.
        check_signature(
            issuer_chain.issuer.public_key,
            signature=signature,
            signed=text,
            what=f"{what} is not signed by '{issuer_chain.issuer.common_name}'",
            code=f"{code}-signature",
            step=4,
        )
        # (4.3) For when.
        _check_in_date(what, code, validity, at)
        expiries += [issuer_chain.issuer.not_after, validity[1]]
    return min(expiries)


def _check_signer(
    issuer_chain: IssuerChain,
    what: str,
    collateral: Collateral,
    *,
    anchor: Certificate,
    root: TrustRoot,
    at: datetime,
) -> None:
    check_trusted_root(issuer_chain.root_der, what=what, root=root, step=4)
    signer = issuer_chain.issuer
    signer.check_named(SIGNING_PHRASE, step=4)
    signer.check_end_entity(step=4)
    signer.check_issued_by(anchor, step=4)
    signer.check_valid_at(at, step=4)
    collateral.root_ca_crl.check_not_revoked(signer, step=4)


def _check_in_date(
    what: str, code: str, validity: tuple[datetime, datetime], at: datetime
) -> None:
    issued, due = validity
    if not issued <= at <= due:
        late = at > due
        raise VerificationError(
            f"{what} is not valid at this time",
            code=f"{code}-expired" if late else f"{code}-not-yet-valid",
            expected=f"{issued.isoformat()} to {due.isoformat()}",
            got=at.isoformat(),
            remedy="fetch the collateral anew" if late else "",
            step=4,
        )
