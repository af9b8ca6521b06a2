"""What an auditor brings to a run's log, and what is found in it.

All of a report is public. What it does not say is as important as what it does: which
keys were compared with nothing, and from where on the log may have been cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cloister.attestation.policy import Verdict
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Plan, PlanHash
from cloister.ratls.proofs import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """What the auditor knows from elsewhere; the log must agree with it.

    Attributes:
        plan_hash: Hash of the plan that the parties told of; None if not known. With
            it every party's key is known, for the plan names them.
        party_keys: Parties' keys as plans write them.
    """

    plan_hash: PlanHash | None = None
    party_keys: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what is no key with a `ConfigError`."""
        for key in self.party_keys.values():
            parse_party_key(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A record's place.

    Attributes:
        record: Its number, from 0.
        at: Its time, by the clock of the server's host.
    """

    record: int
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSeen:
    """A server that wrote a part of the log.

    Attributes:
        introduced: Where it begins to write.
        epoch: The epoch of its warrant.
        skipped: How many epochs lie between it and the server before it. Each is a
            server that was warranted and wrote nothing here.
        tls_key_sha256: The key that signs.
        completed: Rounds completed in the state it began with.
        lost: Rounds that the log holds and that this server began without.
        cut_after: The last record before it, unless the server that wrote that says
            there that it gave up. What that one wrote behind its custodian's last word
            its host could cut before this one began, and nobody would know. None for
            the first server.
        verdict: On its evidence.
    """

    introduced: Moment
    epoch: int
    skipped: int
    tls_key_sha256: str
    completed: int
    lost: int
    cut_after: Moment | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSeen:
    """A node's admission, or its renewal.

    Attributes:
        admitted: Where.
        party: Whose node.
        epoch: The epoch of its warrant.
        tls_key_sha256: Which node.
        renewed: Whether the same node had been admitted by the same server before.
        standing: The verdict on its evidence, or that its party's key vouches.
    """

    admitted: Moment
    party: str
    epoch: int
    tls_key_sha256: str
    renewed: bool
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class SealSeen:
    """The end of the run.

    Attributes:
        sealed: Where.
        sha256: SHA-256 of the sealed model, hex.
        size_bytes: Its size.
        recipients: Who can open it, as age recipients; the plan's.
        state: SHA-256 of the state that it is of, hex.
        reports: How many workers reported on it, and countersigned the end.
    """

    sealed: Moment
    sha256: str
    size_bytes: int
    recipients: tuple[str, ...]
    state: str
    reports: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """Who took part in the rounds that the run went on from; lost ones do not count.

    In each it was as the plan's rule has it. With a number as quorum that leaves open
    who of the others came late, had no seat, or was kept away: no log shows that.

    Attributes:
        rounds: How many rounds.
        least: How many parties' updates counted in the round with the fewest; 0 where
            there is no round.
        most: Likewise, with the most.
        by_party: In how many rounds each worker's update counted, in plan order.
    """

    rounds: int
    least: int
    most: int
    by_party: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A custodian's word that the log was so long.

    Attributes:
        party: Whose custodian.
        upto: The last record that it vouches for; all before it are in that.
        round: Rounds completed then.
        had_at: When the custodian had it, by its own clock.
    """

    party: str
    upto: Moment
    round: int
    had_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTime:
    """A time that others than the server signed: it was not earlier than that.

    Attributes:
        what: What was signed.
        at: When.
    """

    what: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How often something is in the log that ends nothing.

    Attributes:
        refusals: Refusals that are recorded one by one.
        refusals_unrecorded: Refusals that came too fast to be.
        withdrawals: Admissions that ended before their time.
        failures: How often a server gave up.
    """

    refusals: int = 0
    refusals_unrecorded: int = 0
    withdrawals: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """A run's log in which every step held; made by `verify_audit` alone.

    Attributes:
        plan: The plan, as the log has it; every party consented to it.
        plan_hash: Its hash.
        plan_compared: Whether the auditor knew the hash.
        keys_compared: Parties whose keys the auditor knew. Of all others nothing says
            that the key in the plan is theirs.
        records: Number of records.
        unsigned: How many more there are behind them, of a server that was never
            introduced. They count for nothing.
        head: Head of the log, hex.
        opened: Its first record.
        ended: Its last record.
        servers: Who wrote it, in order.
        admissions: All of them, in order.
        completed: Rounds completed at the end of the log.
        rounds_recorded: Rounds in it, those that were done again counted again.
        attendance: Who took part in them.
        countersigned: The last record whose head every node signed that took part in
            the round after it, or reported at the end.
        seal: The end of the run; None where it is not in the log.
        counted: What else there is.
        proofs: Custodians' word for how long it was, from the heads that the auditor
            brought, in that order.
        signed_times: What bounds the run's time from below.
    """

    plan: Plan
    plan_hash: PlanHash
    plan_compared: bool
    keys_compared: tuple[str, ...]
    records: int
    unsigned: int
    head: str
    opened: Moment
    ended: Moment
    servers: tuple[ServerSeen, ...]
    admissions: tuple[AdmissionSeen, ...]
    completed: int
    rounds_recorded: int
    attendance: Attendance
    countersigned: Moment | None
    seal: SealSeen | None
    counted: Counted
    proofs: tuple[Proof, ...]
    signed_times: tuple[SignedTime, ...]

    @property
    def keys_not_compared(self) -> dict[str, str]:
        """The keys that the auditor should compare with their parties, by name."""
        compared = frozenset(self.keys_compared)
        return {
            party.name: party.key
            for party in self.plan.party
            if party.name not in compared
        }

    @property
    def proven(self) -> Proof | None:
        """The proof that reaches furthest; None where there is none at all.

        Only by keys that the auditor knew: whoever invents a log and its parties signs
        heads for them as well.
        """
        compared = frozenset(self.keys_compared)
        known = [it for it in self.proofs if it.party in compared]
        return max(known, key=lambda it: it.upto.record, default=None)

    @property
    def unproven(self) -> int:
        """How many records at the end nobody vouches for whose key was compared."""
        proven = self.proven
        return self.records - (0 if proven is None else proven.upto.record + 1)

    @property
    def clock_ahead_seconds(self) -> float:
        """How far the log's clock was ahead of a custodian's at least; 0 if it was not.

        A record that is dated later than its custodian had it cannot be right, or the
        custodian's clock is not.
        """
        ahead = ((it.upto.at - it.had_at).total_seconds() for it in self.proofs)
        return max(0.0, *ahead, 0.0)
