"""Step 3 of verification: nothing in the PCK chain is revoked.

Follows Intel's quote verification library (PckCrlVerifier). Both lists are mandatory:
where there is none, or an old one, nobody knows, and that is a refusal.
"""

from __future__ import annotations

from datetime import datetime

from cloister.attestation.certificates import Certificate
from cloister.attestation.collateral import Collateral
from cloister.attestation.pck_chain import CA_PHRASE, PckChain, check_trusted_root
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError


def check_revocation(
    collateral: Collateral, *, chain: PckChain, root: TrustRoot, at: datetime
) -> datetime:
    """Checks both revocation lists and the whole PCK chain against them.

    (3.1) The root CA CRL is the root's, signed and in date.
    (3.2) The PCK CRL is the leaf's issuer's, signed and in date.
    (3.3) The certificate that came with the PCK CRL is that issuer's.
    (3.4) Root and CA are not on the root CA CRL, the leaf is not on the PCK CRL.

    Args:
        collateral: Where the lists are.
        chain: The PCK chain, verified by step 2.
        root: The one root that is accepted.
        at: The time to verify for, aware.

    Returns:
        When the first thing that was checked here expires, aware.

    Raises:
        VerificationError: If any of it fails (step 3).
    """
    # (3.1) What the root has revoked.
    collateral.root_ca_crl.check_issued_by(chain.anchor, at=at)
    # (3.2) What the CA has revoked; the CA is the quote's, which step 2 has verified.
    collateral.pck_crl.check_issued_by(chain.ca, at=at)
    # (3.3) Intel may issue the CA's certificate anew, with the same name and key.
    issuer_chain = collateral.pck_crl_issuer_chain
    check_trusted_root(issuer_chain.root_der, what="PCK CRL", root=root, step=3)
    issuer = issuer_chain.issuer
    if issuer.der != chain.ca.der:
        _check_same_authority(issuer, chain=chain, at=at)
        collateral.root_ca_crl.check_not_revoked(issuer, step=3)
    # (3.4) Revocation.
    collateral.root_ca_crl.check_not_revoked(chain.anchor, step=3)
    collateral.root_ca_crl.check_not_revoked(chain.ca, step=3)
    collateral.pck_crl.check_not_revoked(chain.leaf, step=3)
    return min(
        collateral.root_ca_crl.next_update,
        collateral.pck_crl.next_update,
        issuer.not_after,
    )


def _check_same_authority(
    issuer: Certificate, *, chain: PckChain, at: datetime
) -> None:
    if (
        issuer.body.subject != chain.ca.body.subject
        or issuer.public_key != chain.ca.public_key
    ):
        raise VerificationError(
            "PCK CRL comes with another authority's certificate",
            code="crl-issuer",
            expected=f"'{chain.ca.common_name}', with the key that signed the PCK",
            got=f"'{issuer.common_name}'",
            step=3,
        )
    issuer.check_named(CA_PHRASE, step=3)
    issuer.check_issued_by(chain.anchor, step=3)
    issuer.check_valid_at(at, step=3)
