"""A custodian: a party's own service, which remembers what it consented to.

It runs at the party's own site, outside any TEE, and is the anchor outside the host:
nothing on a host's disk makes it sign. What it decides rests on its register, on its
own verification of the node, and on the party's key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attestation.collateral import Collateral
from cloister.attestation.policy import (
    Policy,
    Verdict,
    appraise,
    appraise_tightened,
)
from cloister.custody.key_store import KeyStore, ask_store
from cloister.custody.local_policy import for_another_party
from cloister.custody.register import Register
from cloister.custody.release_rules import keys_for
from cloister.custody.released_keys import check_key, seal_keys
from cloister.errors import CloisterError, VerificationError
from cloister.plan.plan import Party, Plan, PlanHash
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.challenge import ClientProof
from cloister.ratls.identity import Spki
from cloister.ratls.mark import Mark
from cloister.ratls.proofs import verify_client_proof
from cloister.ratls.testimony import Shown, shown
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import Warrant, WarrantTerms, sign_warrant
from cloister.storage.keys import KeyKind

# A session lasts as long as a run, evidence does not: a platform may be revoked. Keys
# leave for what was proved a moment ago; who asks later proves itself again.
PROOF_LIFE: Final = timedelta(minutes=10)


def tell_nobody(_plan: Plan) -> None:
    """Keeps it to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A node that proved itself in a session, and when.

    Attributes:
        transcript: What both sides of the session said.
        shown: What the node showed, to be kept.
        at: The custodian's time.
    """

    transcript: Transcript
    shown: Shown
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Keys on their way to one node.

    Attributes:
        sealed: The keys, for that node in that session alone.
        key_ids: Which ones, by kind, as the plan names them.
        epoch: The node's epoch.
    """

    sealed: bytes
    key_ids: dict[KeyKind, str]
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """What a custodian is and knows.

    Attributes:
        party: Its party.
        key: The party's key.
        register: Consents, epochs, marks, and a record of each decision.
        keys: The party's keys.
        appraiser: How it judges a node's evidence.
        local_policy: The party's own policy, which can only refuse more than the
            plan's; None where it wants what the plan wants. It is for the party's own
            node, and for others' as far as `for_another_party` says.
        warrant_life: How long a warrant is in force.
        on_unpinned: Told of plans under which the party's node may run on a machine of
            anybody's, each time that one is looked at.
    """

    party: str
    key: Ed25519PrivateKey = field(repr=False)
    register: Register
    keys: KeyStore = field(repr=False)
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

    def judge(
        self,
        unverified: ClientProof,
        *,
        plan: Plan,
        transcript: Transcript,
        warrant: Warrant | None,
    ) -> Proved:
        """Returns a node that proved itself, by the plan's policy and the party's own.

        Args:
            unverified: Evidence or a signature, as it came.
            plan: The party's own copy.
            transcript: What both sides said.
            warrant: The node's, verified; None where this custodian signs it.

        Raises:
            VerificationError: If the proof is not of the kind that the plan asks for,
                not genuine, not made for this exchange, or not what either policy
                wants.
            CloisterError: If the collateral for it cannot be had.
        """
        if transcript.client_party == self.party:
            self.look_at_platforms(plan)
        used: list[Collateral] = []

        def appraise_quote(unverified_quote: bytes, bound: bytes) -> Verdict:
            collateral = self.appraiser.fetch_collateral(
                unverified_quote, expected_report_data=bound
            )
            used.append(collateral)
            claims = self.appraiser.verify_with(
                unverified_quote, collateral=collateral, expected_report_data=bound
            )
            policy = plan.policy_of(transcript.client_party)
            local = self.local_policy
            if local is None:
                return appraise(claims, policy)
            if transcript.client_party != self.party:
                local = for_another_party(local, plans=policy)
            return appraise_tightened(
                claims, plan_policy=policy, local_policy=local
            ).plan

        verify_client_proof(
            unverified,
            party=plan.find_party(transcript.client_party),
            transcript=transcript,
            appraise=appraise_quote,
        )
        return Proved(
            transcript=transcript,
            shown=shown(
                transcript,
                warrant=warrant,
                proof=unverified,
                collateral=used[0] if used else None,
            ),
            at=self.appraiser.clock(),
        )

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

    def warrant(self, proved: Proved) -> Warrant:
        """Returns a warrant for a node of the party; its epoch is durable then.

        Raises:
            ProtocolError: If it had too many of late (``warrant-limit``).
            VerificationError: If a newer node of the party has taken its place.
            StorageError: If the register cannot be written.
        """
        terms = self.register.grant(
            proved.shown.testimony,
            collateral=proved.shown.collateral,
            at=self.appraiser.clock(),
            life=self.warrant_life,
        )
        return sign_warrant(terms, self.key)

    def meet(self, proved: Proved) -> WarrantTerms:
        """Returns the terms of another party's node, its epoch remembered durably.

        Raises:
            ProtocolError: If too many of its party came of late (``warrant-limit``).
            VerificationError: If its warrant is over by now, or a newer node of its
                party was seen here.
            StorageError: If the register cannot be written.
        """
        return self.register.note_foreign_warrant(
            proved.shown.testimony,
            collateral=proved.shown.collateral,
            at=self.appraiser.clock(),
        )

    def release(
        self, kinds: Sequence[KeyKind], *, proved: Proved, epoch: int
    ) -> Release:
        """Returns keys for a node that proved itself; the release is recorded then.

        Steps: (1) it did so a moment ago; (2) the plan, which is in force, names keys
        of these kinds for it; (3) it does not ask too often; (4) they are there, and
        the very ones; (5) they are sealed to it, in this session; (6) in one
        transaction: the consent is in force, the node its party's newest, the rate is
        kept, all is recorded.

        Args:
            kinds: What it asks for.
            proved: The node.
            epoch: The epoch of its warrant.

        Raises:
            ProtocolError: If it asks for nothing, twice for one, or too often.
            VerificationError: If any other step fails.
            StorageError: If a key cannot be read, its store fails, or the register
                cannot be written.
        """
        transcript = proved.transcript
        # Step 1: proved a moment ago
        age = self.appraiser.clock() - proved.at
        if age > PROOF_LIFE:
            raise VerificationError(
                "what the node proved is some time ago",
                code="proof-old",
                expected=f"a proof of the last {PROOF_LIFE}",
                got=f"one of {age} ago",
                remedy="Meet this custodian again.",
            )
        # Step 2: for this node, by the plan
        key_ids = keys_for(
            self.plan(transcript.plan_hash),
            custodian_party=self.party,
            role=transcript.client_role,
            party=transcript.client_party,
            kinds=kinds,
        )
        # Step 3: not too often. Step 6 decides; here a flood costs the store nothing.
        self.register.check_release_rate(transcript, at=self.appraiser.clock())
        # Step 4: the very keys; a store of somebody else's may err
        keys = {
            kind: check_key(
                kind,
                ask_store(self.keys, name, kind=kind),
                name=name,
                custodian=self.party,
            )
            for kind, name in key_ids.items()
        }
        # Step 5: sealed. Before the record: what cannot be sealed was not released.
        sealed = seal_keys(keys, transcript=transcript, epoch=epoch)
        # Step 6: now, and on record
        newest = self.register.release(
            transcript, key_ids=tuple(key_ids.values()), at=self.appraiser.clock()
        )
        if newest != epoch:
            # Its party gave the same key another epoch meanwhile; nothing left.
            raise VerificationError(
                "the node has another epoch than when it met this custodian",
                code="epoch-old",
                expected=f"epoch {newest}",
                got=f"epoch {epoch}",
                remedy="Meet this custodian again.",
            )
        return Release(sealed=sealed, key_ids=key_ids, epoch=epoch)

    def note_refusal(self, proved: Proved, error: CloisterError) -> None:
        """Records that a node which proved itself was refused, and why.

        Raises:
            CloisterError: If the register cannot be written, or its clock went back.
        """
        self.register.note_refusal(
            proved.shown.testimony,
            collateral=proved.shown.collateral,
            error=error,
            at=self.appraiser.clock(),
        )

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
