"""Collateral that is genuine by itself, before there is a quote to use it for.

Steps 3 and 4 of verification as far as they need no quote. A cache keeps only what
passes, so that what a faulty or hostile service sends is found out when it comes, and
is not kept for a month. Verification relies on none of it and does it all again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attestation.certificates import Certificate, parse_certificate
from cloister.attestation.collateral import Collateral
from cloister.attestation.pck_chain import CA_PHRASE, check_trusted_root
from cloister.attestation.signed_collateral import check_signed_collateral
from cloister.attestation.trust_root import TrustRoot

# What is left of its life when collateral should be fetched anew.
_REFRESH_SHARE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedCollateral:
    """Genuine collateral, in date; made by `checked_collateral` and nowhere else.

    Attributes:
        collateral: The collateral.
        not_before: When the last part of it was issued, aware.
        not_after: When the first part of it expires, aware.
        crl_numbers: Number of each revocation list, by its issuer's key (SHA-256 of
            the SubjectPublicKeyInfo, hex).
    """

    collateral: Collateral
    not_before: datetime
    not_after: datetime
    crl_numbers: tuple[tuple[str, int], ...]

    @property
    def refresh_at(self) -> datetime:
        """When it should be fetched anew: with a third of its life left."""
        return self.not_after - (self.not_after - self.not_before) / _REFRESH_SHARE


def checked_collateral(
    collateral: Collateral, *, root: TrustRoot, at: datetime
) -> CheckedCollateral:
    """Returns the collateral, if all of it is genuine under `root` and in date.

    Raises:
        VerificationError: If any part is not (steps 3 and 4).
    """
    anchor = parse_certificate(root.der, step=3)
    # What the root has revoked.
    root_crl = collateral.root_ca_crl
    root_crl.check_issued_by(anchor, at=at)
    # Who issues PCK certificates; in the quote's absence, whom the list comes with.
    chain = collateral.pck_crl_issuer_chain
    check_trusted_root(chain.root_der, what="PCK CRL", root=root, step=3)
    chain.issuer.check_named(CA_PHRASE, step=3)
    chain.issuer.check_issued_by(anchor, step=3)
    chain.issuer.check_valid_at(at, step=3)
    root_crl.check_not_revoked(chain.issuer, step=3)
    # What it has revoked.
    pck_crl = collateral.pck_crl
    pck_crl.check_issued_by(chain.issuer, at=at)
    # What is said of platforms and quoting enclaves.
    documents_end = check_signed_collateral(collateral, anchor=anchor, root=root, at=at)
    return CheckedCollateral(
        collateral=collateral,
        not_before=max(
            root_crl.this_update,
            pck_crl.this_update,
            collateral.tcb_info.issue_date,
            collateral.qe_identity.issue_date,
        ),
        not_after=min(
            root_crl.next_update,
            pck_crl.next_update,
            chain.issuer.not_after,
            documents_end,
        ),
        crl_numbers=(
            (_key_id(anchor), root_crl.number),
            (_key_id(chain.issuer), pck_crl.number),
        ),
    )


def _key_id(certificate: Certificate) -> str:
    spki = certificate.public_key.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(spki).hexdigest()
