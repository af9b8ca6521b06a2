"""The collateral in an audit: by its hash, and the trust root it hangs from.

Nobody's word is taken for any of it. Whether it is genuine is found each time that
evidence is judged with it, under the root that the plan pins.
"""

from __future__ import annotations

from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.trust_root import (
    TrustRoot,
    intel_trust_root,
    preproduction_trust_root,
    simulated_trust_root,
)
from cloister.errors import VerificationError
from cloister.plan.plan import Plan
from cloister.ratls.testimony import collateral_sha256


class KeptCollateral:
    """Collateral that later records name."""

    def __init__(self) -> None:
        self._kept: dict[str, Collateral] = {}

    def keep(self, unverified_text: str, *, sha256: str) -> None:
        """Keeps collateral for the records that name it.

        Raises:
            VerificationError: If it is not what its name says, or is none.
        """
        got = collateral_sha256(unverified_text)
        if got != sha256:
            raise VerificationError(
                "collateral is not what its name says",
                code="audit-collateral",
                expected=sha256,
                got=got,
            )
        self._kept[got] = parse_collateral(unverified_text)

    def get(self, sha256: str) -> Collateral:
        """Returns the collateral of this name.

        Raises:
            VerificationError: If no record before has it.
        """
        collateral = self._kept.get(sha256)
        if collateral is None:
            raise VerificationError(
                "the record names collateral that the log does not have before it",
                code="audit-collateral",
                expected="a record with it, before",
                got=sha256,
            )
        return collateral


def root_of(plan: Plan, collateral: Collateral) -> TrustRoot:
    """Returns the one root that the plan's policies accept.

    Intel's is built in. Any other is taken from the collateral itself: the plan has its
    hash, so it does not matter from where it comes.

    Raises:
        VerificationError: If the collateral hangs from another root.
        ConfigError: If its root cannot be one.
    """
    wanted = plan.policy.server.root
    if wanted == "hardware":
        return intel_trust_root()
    preproduction = wanted.startswith("preproduction:")
    make = preproduction_trust_root if preproduction else simulated_trust_root
    root = make(collateral.tcb_info_issuer_chain.root_der)
    if root.name != wanted:
        raise VerificationError(
            "the recorded collateral hangs from another root than the plan pins",
            code="audit-root",
            expected=wanted,
            got=root.name,
        )
    return root
