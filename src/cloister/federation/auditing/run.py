"""A run as its log tells it, record by record, each held against those before it.

The steps are those of `audit_verification`, which feeds it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    NodeRefused,
    RefusalsCounted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    ServerIntroduced,
    WarrantRenewed,
)
from cloister.federation.auditing.admissions import Admissions
from cloister.federation.auditing.heads import Heads, Here
from cloister.federation.auditing.opening import Opening, moment_of
from cloister.federation.auditing.report import (
    AdmissionSeen,
    AuditReport,
    Counted,
    Moment,
    SealSeen,
    ServerSeen,
    SignedTime,
)
from cloister.federation.auditing.rounds import RunRounds
from cloister.federation.auditing.servers import Servers
from cloister.ratls.audit_collateral import KeptCollateral
from cloister.ratls.proofs import Standing
from cloister.ratls.warrant import WarrantTerms, instant
from cloister.storage.audit_chain import Link


class AuditedRun:
    """Takes a log's records in their order.

    Args:
        opening: What the first record fixes.
        heads: What custodians signed.
    """

    def __init__(self, opening: Opening, heads: Heads) -> None:
        self._opening = opening
        self._roles = {party.name: party.role for party in opening.plan.party}
        self._heads = heads
        self._shelf = KeptCollateral()
        self._servers = Servers()
        self._admissions = Admissions()
        self._rounds = RunRounds(opening)
        self._seen_servers: list[ServerSeen] = []
        self._seen_admissions: list[AdmissionSeen] = []
        self._seal: SealSeen | None = None
        self._counted = Counted()
        self._gave_up = False
        self._times = {"consent": opening.consented}
        self._opened: Moment | None = None
        self._last: Link | None = None

    def take(self, link: Link, entry: AnyEntry) -> None:
        """Takes the next record.

        Args:
            link: The record in its place.
            entry: What it says.

        Raises:
            CloisterError: If it does not hold.
        """
        at = moment_of(link)
        self._opened = self._opened or at
        self._servers.check_signed(link, entry)
        self._take_entry(link, entry, at)
        if self._servers.waiting:
            return
        self._last = link
        self._rounds.note_head(link.head, at)
        if self._heads.is_wanted(link.head):
            self._heads.meet(link.head, self._here(at))

    def finish(self) -> AuditReport:
        """Returns the report, when the last record was taken.

        Raises:
            CloisterError: If the log ends where it cannot, or before a head that a
                custodian knows.
        """
        opening, link, opened = self._opening, self._last, self._opened
        if link is None or opened is None:
            raise VerificationError(
                "the log ends before a server is introduced",
                code="audit-signer",
                expected="a server that signed it",
                got=f"{self._servers.waiting} records of an unknown key",
            )
        ended = moment_of(link)
        return AuditReport(
            plan=opening.plan,
            plan_hash=opening.plan_hash,
            plan_compared=opening.plan_compared,
            keys_compared=opening.keys_compared,
            records=link.seq + 1,
            unsigned=self._servers.waiting,
            head=link.head,
            opened=opened,
            ended=ended,
            servers=tuple(self._seen_servers),
            admissions=tuple(self._seen_admissions),
            completed=self._rounds.progress.completed,
            rounds_recorded=self._rounds.recorded,
            attendance=self._rounds.attendance,
            countersigned=self._rounds.countersigned,
            seal=self._seal,
            counted=self._counted,
            proofs=self._heads.proofs(self._here(ended)),
            signed_times=tuple(self._times.values()),
        )

    def _take_entry(self, link: Link, entry: AnyEntry, at: Moment) -> None:
        match entry:
            case RunOpened():
                if link.seq != 0:
                    raise _misplaced("a run is opened", "once, by the first record")
            case CollateralUsed():
                self._shelf.keep(entry.text, sha256=entry.sha256)
            case ServerIntroduced():
                self._introduce(link, entry, at)
            case NodeAdmitted():
                self._admit(entry, at)
            case WarrantRenewed():
                self._servers.renew(entry, opening=self._opening, at=at)
                self._note_warrant(entry.warrant.terms)
            case RoundCompleted():
                self._servers.check_warranted(at)
                self._rounds.complete(entry, admissions=self._admissions)
            case ModelSealed():
                self._servers.check_warranted(at)
                self._take_seal(entry, at)
            case _:
                self._take_mishap(entry, at)

    def _take_mishap(
        self,
        entry: NodeRefused | RefusalsCounted | AdmissionWithdrawn | RunFailed,
        at: Moment,
    ) -> None:
        counted = self._counted
        match entry:
            case NodeRefused():
                self._check_party(entry.party, entry.role)
                self._counted = replace(counted, refusals=counted.refusals + 1)
            case RefusalsCounted():
                self._check_party(entry.party)
                self._counted = replace(
                    counted,
                    refusals_unrecorded=counted.refusals_unrecorded + entry.count,
                )
            case AdmissionWithdrawn():
                self._admissions.withdraw(entry, at=at)
                self._counted = replace(counted, withdrawals=counted.withdrawals + 1)
            case RunFailed():
                self._rounds.fail(entry)
                self._gave_up = True
                self._counted = replace(counted, failures=counted.failures + 1)

    def _introduce(self, link: Link, entry: ServerIntroduced, at: Moment) -> None:
        if self._rounds.sealed:
            raise _misplaced("a server begins", "before the model is sealed")
        before = self._servers.last
        verdict = self._servers.introduce(
            link, entry, opening=self._opening, shelf=self._shelf, at=at
        )
        lost = self._rounds.begin_server(entry)
        self._admissions.begin_server()
        server = self._servers.in_force
        self._heads.note_server(server)
        self._seen_servers.append(
            ServerSeen(
                introduced=at,
                epoch=server.terms.epoch,
                skipped=server.terms.epoch - (before.terms.epoch if before else 0) - 1,
                tls_key_sha256=server.key_sha256,
                completed=entry.completed,
                lost=lost,
                cut_after=self._cut_after(),
                verdict=verdict,
            )
        )
        self._gave_up = False
        self._note_warrant(server.terms)
        self._note_collateral(verdict)

    def _cut_after(self) -> Moment | None:
        if self._last is None or self._gave_up:
            return None
        return moment_of(self._last)

    def _admit(self, entry: NodeAdmitted, at: Moment) -> None:
        peer, renewed = self._admissions.admit(
            entry,
            opening=self._opening,
            servers=self._servers,
            shelf=self._shelf,
            at=at,
            completed=self._rounds.progress.completed,
        )
        self._seen_admissions.append(
            AdmissionSeen(
                admitted=at,
                party=peer.party,
                epoch=peer.epoch,
                tls_key_sha256=peer.node.key.hex(),
                renewed=renewed,
                standing=peer.standing,
            )
        )
        if entry.testimony.warrant is not None:
            self._note_warrant(entry.testimony.warrant.terms)
        self._note_collateral(peer.standing)

    def _take_seal(self, entry: ModelSealed, at: Moment) -> None:
        self._rounds.seal(entry, admissions=self._admissions)
        self._seal = SealSeen(
            sealed=at,
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            recipients=entry.recipients,
            state=entry.state,
            reports=len(entry.reports),
        )

    def _check_party(self, name: str, role: str | None = None) -> None:
        known = self._roles.get(name)
        if known is None or role not in (None, known):
            raise VerificationError(
                "a refusal names nobody of the plan",
                code="audit-refusal",
                expected="a party of the plan, in its role",
                got=f"{role or 'party'} {name}",
            )

    def _note_warrant(self, terms: WarrantTerms) -> None:
        self._note_time(
            f"warrant of {terms.party}",
            what=f"a warrant of {terms.party!r}",
            at=instant(terms.issued_at),
        )

    def _note_collateral(self, standing: Standing) -> None:
        if isinstance(standing, Verdict):
            self._note_time(
                "collateral",
                what="the collateral of a platform",
                at=standing.claims.collateral_issued_at,
            )

    def _note_time(self, key: str, *, what: str, at: datetime) -> None:
        known = self._times.get(key)
        if known is None or known.at < at:
            self._times[key] = SignedTime(what=what, at=at)

    def _here(self, at: Moment) -> Here:
        return Here(
            at=at, server=self._servers.in_force, progress=self._rounds.progress
        )


def _misplaced(what: str, expected: str) -> VerificationError:
    return VerificationError(
        f"{what} where that cannot be", code="audit-misplaced", expected=expected
    )
