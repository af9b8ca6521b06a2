"""What a custodian's records say so far, and what may come next.

The rules are those of the register, applied again by somebody who has the records
alone. `audit_verification` says which steps these are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cloister.attestation.trust_root import intel_trust_root
from cloister.custody.audit_records import (
    ConsentGiven,
    ConsentWithdrawn,
    KeyAdded,
    KeyReleased,
    KeyRevoked,
    KeyRotated,
    MarkRewound,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)
from cloister.custody.register_rows import KeyState, PlanState
from cloister.custody.release_rules import all_keys_for
from cloister.errors import VerificationError
from cloister.plan.consent import parse_consent, verify_consent
from cloister.plan.plan import Plan, PlanHash, Role, parse_plan, plan_hash
from cloister.ratls.audit_collateral import KeptCollateral, root_of
from cloister.ratls.epochs import key_digest
from cloister.ratls.proofs import Standing
from cloister.ratls.testimony import Testimony, verify_testimony
from cloister.ratls.warrant import WarrantTerms, instant
from cloister.storage.keys import KeyKind

_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentSeen:
    """A plan that the party consented to.

    Attributes:
        plan: The plan.
        plan_hash: Its hash.
        state: What became of the consent.
        at: When that was.
    """

    plan: Plan
    plan_hash: PlanHash
    state: PlanState
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node that had a warrant.

    Attributes:
        terms: Of its newest warrant.
        encryption_key: To which keys may be sealed.
        standing: What it proved itself to be when it last did.
        own: Whether it is the party's; else it came for a share.
        met: When it first came.
    """

    terms: WarrantTerms
    encryption_key: bytes
    standing: Standing
    own: bool
    met: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSeen:
    """A release of keys.

    Attributes:
        release: As it is recorded.
        at: When.
    """

    release: KeyReleased
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySeen:
    """A key in the custodian's keeping.

    Attributes:
        key_id: Its name.
        kind: What it is for.
        label: The owner's word for it.
        state: What became of it.
        at: When that was.
    """

    key_id: str
    kind: KeyKind
    label: str
    state: KeyState
    at: datetime


@dataclass(slots=True, kw_only=True)
class History:
    """All records so far.

    Attributes:
        party: Whose custodian.
        key: The party's key, as plans write it.
        consents: By plan.
        nodes: By run, role, party and epoch.
        releases: In order.
        keys: By name.
        refusals: How many.
        rewound: Runs, in order.
        collateral: What testimonies name.
    """

    party: str
    key: str
    consents: dict[PlanHash, ConsentSeen] = field(default_factory=dict)
    nodes: dict[tuple[str, Role, str, int], NodeSeen] = field(default_factory=dict)
    releases: list[ReleaseSeen] = field(default_factory=list)
    keys: dict[str, KeySeen] = field(default_factory=dict)
    refusals: int = 0
    rewound: list[str] = field(default_factory=list)
    collateral: KeptCollateral = field(default_factory=KeptCollateral)
    _newest: dict[tuple[str, Role, str], int] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether some plan is: evidence under it proves nothing."""
        return any(seen.plan.simulated for seen in self.consents.values())

    def consent(self, entry: ConsentGiven, *, at: datetime) -> None:
        """Step 4: the party's consent to the very plan that is recorded."""
        plan = parse_plan(entry.plan)
        digest = plan_hash(plan)
        if (digest, plan.run_id) != (entry.plan_hash, entry.run_id):
            raise _refusal("the plan is another one", "audit-consent")
        verify_consent(parse_consent(entry.consent), plan=plan, party=self.party, at=at)
        if plan.find_party(self.party).key != self.key:
            raise _refusal("the plan names another key of the party", "audit-consent")
        in_place = self._in_place(entry.run_id)
        before = None if in_place in (None, digest) else in_place
        if before != entry.supersedes:
            raise _refusal("it takes the place of another plan", "audit-consent")
        if before is not None:
            gone = self.consents[before]
            self.consents[before] = replace(gone, state="superseded", at=at)
        self.consents[digest] = ConsentSeen(
            plan=plan, plan_hash=digest, state="active", at=at
        )

    def withdraw(self, entry: ConsentWithdrawn, *, at: datetime) -> None:
        """A consent in force ends."""
        seen = self._in_force(entry.plan_hash)
        if seen.plan.run_id != entry.run_id:
            raise _refusal("the plan is of another run", "audit-consent")
        self.consents[seen.plan_hash] = replace(seen, state="withdrawn", at=at)

    def warrant(self, entry: WarrantSigned, *, at: datetime) -> None:
        """Step 5: the party's own node, newly come or renewed."""
        terms, shown = entry.terms, entry.testimony
        issued = instant(terms.issued_at)
        if issued > at or terms.party != self.party or shown.warrant is not None:
            raise _refusal("its terms are none of the register's", "audit-warrant")
        standing = self._standing(terms, shown, at=issued)
        newest = self._newest_node(terms.run_id, terms.role, terms.party)
        if entry.epoch_new:
            self._check_next(terms, newest)
        elif (
            newest is None
            or not _same_node(newest.terms, terms)
            or newest.encryption_key != shown.said.client_encryption_key
        ):
            raise _refusal("what is renewed is not the newest node", "audit-epoch")
        self._put(terms, shown, standing, at=at)

    def note(self, entry: WarrantNoted, *, at: datetime) -> None:
        """Step 6: another party's node."""
        shown = entry.testimony
        if shown.warrant is None or shown.warrant.terms.party == self.party:
            raise _refusal("it is no warrant of another party", "audit-warrant")
        terms = shown.warrant.terms
        standing = self._standing(terms, shown, at=at)
        newest = self._newest_node(terms.run_id, terms.role, terms.party)
        if newest is not None and terms.epoch <= newest.terms.epoch:
            raise _refusal("a newer node of that party was here", "audit-epoch")
        self._put(terms, shown, standing, at=at)

    def release(self, entry: KeyReleased, *, at: datetime) -> None:
        """Step 7: to whom, under what, and which keys."""
        seen = self._in_force(entry.plan_hash)
        node = self._newest_node(entry.run_id, entry.role, entry.party)
        if node is None or (
            seen.plan.run_id,
            node.terms.plan_hash,
            node.terms.epoch,
            key_digest(node.terms.tls_key).hex(),
            node.encryption_key,
        ) != (
            entry.run_id,
            entry.plan_hash,
            entry.epoch,
            entry.tls_key_sha256,
            entry.encryption_key,
        ):
            raise _refusal("it went to no node that was the newest", "audit-release")
        # A foreign node's warrant is renewed at its own custodian, and is not recorded
        # here again; then the register alone knows how long it lasts.
        if node.own and at >= instant(node.terms.expires_at) + _SECOND:
            raise _refusal("the node's warrant was over", "audit-release")
        allowed = all_keys_for(
            seen.plan,
            custodian_party=self.party,
            role=entry.role,
            party=entry.party,
        )
        if not allowed.issuperset(entry.key_ids):
            raise _refusal("the plan gives the node no such key", "audit-release")
        for key_id in entry.key_ids:
            kept = self.keys.get(key_id)
            if kept is not None and kept.state == "revoked":
                raise _refusal("a revoked key was released", "audit-release")
        self.releases.append(ReleaseSeen(release=entry, at=at))

    def count(self, entry: NodeRefused | MarkRewound) -> None:
        """What is not judged again."""
        if isinstance(entry, NodeRefused):
            self.refusals += 1
        else:
            self.rewound.append(entry.run_id)

    def change_key(
        self, entry: KeyAdded | KeyRotated | KeyRevoked, *, at: datetime
    ) -> None:
        """Step 8: what becomes of a key."""
        if isinstance(entry, KeyRevoked):
            self._revoke_key(entry, at=at)
        else:
            self._add_key(entry, at=at)

    def _add_key(self, entry: KeyAdded | KeyRotated, *, at: datetime) -> None:
        if entry.key_id in self.keys:
            raise _refusal("the key was there already", "audit-key")
        if isinstance(entry, KeyRotated):
            old = self.keys.get(entry.replaces)
            if old is None or (old.state, old.kind, old.label) != (
                "active",
                entry.key_kind,
                entry.label,
            ):
                raise _refusal("what it replaces is no such key", "audit-key")
            self.keys[entry.replaces] = replace(old, state="retired", at=at)
        self.keys[entry.key_id] = KeySeen(
            key_id=entry.key_id,
            kind=entry.key_kind,
            label=entry.label,
            state="active",
            at=at,
        )

    def _revoke_key(self, entry: KeyRevoked, *, at: datetime) -> None:
        kept = self.keys.get(entry.key_id)
        if kept is None or kept.state == "revoked":
            raise _refusal("there was no such key to revoke", "audit-key")
        self.keys[entry.key_id] = replace(kept, state="revoked", at=at)

    def _standing(
        self, terms: WarrantTerms, shown: Testimony, *, at: datetime
    ) -> Standing:
        """Returns what a node proved here, under a plan in force."""
        seen, said = self._in_force(terms.plan_hash), shown.said
        if (said.server_role, said.server_party) != ("custodian", self.party) or (
            said.run_id,
            said.plan_hash,
            said.client_role,
            said.client_party,
            said.client_key,
        ) != (terms.run_id, terms.plan_hash, terms.role, terms.party, terms.tls_key):
            raise _refusal("what the node showed is of another", "audit-warrant")
        named = shown.collateral
        collateral = None if named is None else self.collateral.get(named)
        # Without collateral there may be no evidence, and no root is looked at.
        root = (
            intel_trust_root() if collateral is None else root_of(seen.plan, collateral)
        )
        return verify_testimony(
            shown,
            plan=seen.plan,
            plan_hash=seen.plan_hash,
            collateral=collateral,
            root=root,
            at=at,
        )

    def _put(
        self,
        terms: WarrantTerms,
        shown: Testimony,
        standing: Standing,
        *,
        at: datetime,
    ) -> None:
        whose = (terms.run_id, terms.role, terms.party)
        known = self.nodes.get((*whose, terms.epoch))
        self.nodes[*whose, terms.epoch] = NodeSeen(
            terms=terms,
            encryption_key=shown.said.client_encryption_key,
            standing=standing,
            own=terms.party == self.party,
            met=at if known is None else known.met,
        )
        self._newest[whose] = terms.epoch

    def _newest_node(self, run_id: str, role: Role, party: str) -> NodeSeen | None:
        epoch = self._newest.get((run_id, role, party))
        return None if epoch is None else self.nodes[run_id, role, party, epoch]

    def _check_next(self, terms: WarrantTerms, newest: NodeSeen | None) -> None:
        wanted = 1 if newest is None else newest.terms.epoch + 1
        if terms.epoch != wanted:
            raise _refusal("it is not the next epoch", "audit-epoch")
        whose = (terms.run_id, terms.role, terms.party)
        for epoch in range(1, wanted):
            if self.nodes[*whose, epoch].terms.tls_key == terms.tls_key:
                raise _refusal("a former node is back", "audit-epoch")

    def _in_place(self, run_id: str) -> PlanHash | None:
        for digest, seen in self.consents.items():
            if seen.plan.run_id == run_id and seen.state != "superseded":
                return digest
        return None

    def _in_force(self, digest: bytes) -> ConsentSeen:
        seen = self.consents.get(PlanHash(digest))
        if seen is None or seen.state != "active":
            raise _refusal("the party's consent was not in force", "audit-consent")
        return seen


def _same_node(first: WarrantTerms, second: WarrantTerms) -> bool:
    return (first.epoch, first.tls_key, first.plan_hash) == (
        second.epoch,
        second.tls_key,
        second.plan_hash,
    )


def _refusal(what: str, code: str) -> VerificationError:
    return VerificationError(what, code=code)
