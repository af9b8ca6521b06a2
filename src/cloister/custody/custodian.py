"""A custodian: a party's own service, which remembers what it consented to.

It runs at the party's own site, outside any TEE, and is the anchor outside the host:
nothing on a host's disk makes it sign. What it decides rests on its register, on its
own verification of the node, and on the party's key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attestation.policy import Policy, Verdict, appraise_tightened
from cloister.custody.register import Register
from cloister.plan.plan import Party, Plan, PlanHash
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.identity import Spki
from cloister.ratls.mark import Mark
from cloister.ratls.warrant import Warrant, sign_warrant


def tell_nobody(_plan: Plan) -> None:
    """Keeps it to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """What a custodian is and knows.

    Attributes:
        party: Its party.
        key: The party's key.
        register: Consents, epochs and marks.
        appraiser: How it judges a node's evidence.
        local_policy: The party's own policy, which can only refuse more than the
            plan's; None where it wants what the plan wants.
        warrant_life: How long a warrant is in force.
        on_unpinned: Told of plans under which the party's node may run on a machine of
            anybody's, each time that one is looked at.
    """

    party: str
    key: Ed25519PrivateKey = field(repr=False)
    register: Register
    appraiser: Appraiser
    local_policy: Policy | None
    warrant_life: timedelta
    on_unpinned: Callable[[Plan], None] = tell_nobody

    def plan(self, plan_hash: PlanHash) -> Plan:
        """Returns the party's own copy of a plan that it consented to.

        Raises:
            VerificationError: If it did not, or does so no longer.
        """
        return self.register.plan(plan_hash)

    def appraise(
        self, unverified_quote: bytes, *, plan: Plan, expected_report_data: bytes
    ) -> Verdict:
        """Returns the verdict on a node under the plan's policy and the party's own.

        Raises:
            VerificationError: If the evidence is not genuine, not made for this
                exchange, or not what either policy wants.
        """
        self.look_at_platforms(plan)
        policy = plan.policy_of(self.party)
        if self.local_policy is None:
            return self.appraiser.appraise(
                unverified_quote,
                policy=policy,
                expected_report_data=expected_report_data,
            )
        claims = self.appraiser.verify(
            unverified_quote, expected_report_data=expected_report_data
        )
        return appraise_tightened(
            claims, plan_policy=policy, local_policy=self.local_policy
        ).plan

    def look_at_platforms(self, plan: Plan) -> None:
        """Tells `on_unpinned` of a plan that leaves the party's machines open.

        The plan, its policy or the party's own may list them. Where none does, whoever
        has such a machine and reaches this custodian gets a warrant in the party's
        name, and the party's own node loses its.
        """
        if self._own(plan).admit != "attested":
            return
        policies = (plan.policy_of(self.party), self.local_policy)
        if not any(it and isinstance(it.platforms, tuple) for it in policies):
            self.on_unpinned(plan)

    def warrant(self, plan_hash: PlanHash, *, tls_key: Spki) -> Warrant:
        """Returns a warrant for a node that proved itself; its epoch is durable then.

        Raises:
            VerificationError: If a newer node of the party has taken its place.
            StorageError: If the register cannot be written.
        """
        terms = self.register.grant(
            plan_hash,
            tls_key=tls_key,
            at=self.appraiser.clock(),
            life=self.warrant_life,
        )
        return sign_warrant(terms, self.key)

    def deposit(self, plan_hash: PlanHash, *, tls_key: Spki, mark: Mark) -> Mark:
        """Remembers how far the run has come, durably.

        Raises:
            VerificationError: If it contradicts what is known, or the node was
                replaced.
            StorageError: If the register cannot be written.
        """
        return self.register.deposit(
            plan_hash, tls_key=tls_key, mark=mark, at=self.appraiser.clock()
        )

    def _own(self, plan: Plan) -> Party:
        return plan.find_party(self.party)
