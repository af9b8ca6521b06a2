"""The register: what a custodian must never forget, and the rules that rest on it.

It keeps the plans its party consented to, the epochs of nodes, how far each run had
come, sealed keys, and a record of every decision. Every call is one transaction, on the
disk before it returns, so a warrant that left the custodian is remembered whatever
crashes after it.

One class, and longer than others: each method is one transaction, and what it checks in
which order stands in it; the rules themselves are in ``register_*.py``.

What a register cannot know: an older copy of its file, put back while no custodian had
it open, looks like any other. Epochs and marks begin again where the copy stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cloister.custody.audit_records import (
    KeyReleased,
    MarkRewound,
    WarrantNoted,
    WarrantSigned,
)
from cloister.custody.register_clock import any_time, checked_life, checked_time
from cloister.custody.register_file import RegisterFile, create_file
from cloister.custody.register_keys import check_not_revoked
from cloister.custody.register_marks import deposit_mark, mark_row, rewind_mark
from cloister.custody.register_nodes import check_in_force, newest_node, note_foreign
from cloister.custody.register_plans import ConsentedPlans, adopt_plan, withdraw_plan
from cloister.custody.register_records import (
    check_release_rate,
    check_warrant_rate,
    record_refusal,
    record_release,
    record_shown,
    record_time,
    refusal,
    write_record,
)
from cloister.custody.register_rows import (
    ForeignRow,
    KeyRow,
    MarkRow,
    PlanRow,
    RecordRow,
    WarrantRow,
)
from cloister.custody.register_tables import Rows
from cloister.custody.register_warrants import (
    check_newest,
    check_same_encryption_key,
    grant_warrant,
    terms_in,
)
from cloister.errors import CloisterError, ConfigError
from cloister.plan.consent import Consent, verify_consent
from cloister.plan.plan import Plan, PlanHash, parse_plan
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import Spki
from cloister.ratls.mark import Mark
from cloister.ratls.testimony import Testimony
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import WarrantTerms

_RECORDS_AT_ONCE: Final = 64
# Of another party's warrant, so that it holds at the time of its record for certain.
_SECONDS_LEFT: Final = 2


class Register:
    """The memory of one party's custodian; for any thread, beside other processes.

    Made by `create` and `open`. All its methods but `close` raise `StorageError` when
    the file is damaged, replaced, locked for long, or cannot be written; nothing is
    changed then.
    """

    def __init__(self, file: RegisterFile) -> None:
        self._file = file
        self._consented = ConsentedPlans(party=file.party)

    @classmethod
    def create(cls, path: Path, *, party: str) -> Self:
        """Returns a new, empty register of `party` in a new file at `path`.

        Raises:
            StorageError: If something is there, or the file cannot be written.
        """
        create_file(path, party=party)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the register in the file at `path`; every row in it was checked.

        Raises:
            StorageError: If it is missing, another's, of another format, open to other
                users, damaged, or cannot be written.
        """
        return cls(RegisterFile(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; a second time does nothing."""
        self._file.close()

    @property
    def party(self) -> str:
        """Whose custodian this is."""
        return self._file.party

    def adopt(self, plan_text: bytes, consent: Consent, *, at: datetime) -> Plan:
        """Remembers that the party consents to a plan; returns the plan.

        Steps: (1) the plan is one, and the consent is this party's to it; (2) the clock
        has not gone back; (3) the run is new, or never had a warrant from here, or the
        plan is a successor of the newest one of the run; (4) a successor goes on from
        the mark, if there is one. The plan before it is superseded. A plan that is
        active already stays as it is; a withdrawn one is active again.

        Args:
            plan_text: The plan's TOML text.
            consent: The party's consent.
            at: The custodian's time.

        Raises:
            ConfigError: If the text is no plan, the party is not in it, or the run is
                another plan's (code ``run-taken``).
            VerificationError: If the consent or the succession does not hold.
        """
        # Step 1: what, and whose
        plan = parse_plan(plan_text)
        verify_consent(consent, plan=plan, party=self.party, at=at)
        with self._file.transaction() as rows:
            # Step 2: when
            now = checked_time(rows, at)
            # Steps 3 and 4: instead of what
            adopt_plan(rows, plan, text=plan_text, consent=consent, at=now)
        return plan

    def withdraw(self, plan_hash: PlanHash, *, at: datetime) -> None:
        """Ends the consent: no node gets a warrant under the plan from now on.

        Warrants that were given end by their own time. A clock that went back does not
        hinder this. Withdrawing twice is withdrawing once.

        Raises:
            ConfigError: If the party never consented, or another plan of the run is in
                its place.
        """
        with self._file.transaction() as rows:
            withdraw_plan(rows, plan_hash, at=any_time(at))

    def plan(self, plan_hash: PlanHash) -> Plan:
        """Returns a plan that the party consents to.

        Its row is read each time; its text and signature are verified when they were
        not yet, for anybody may ask.

        Raises:
            VerificationError: If it never did (``plan-not-consented``), no longer does
                (``plan-withdrawn``), or consented to a successor (``plan-superseded``).
        """
        with self._file.transaction() as rows:
            return self._consented.plan(rows, plan_hash)

    def grant(
        self,
        testimony: Testimony,
        *,
        collateral: str | None,
        at: datetime,
        life: timedelta,
    ) -> WarrantTerms:
        """Returns the terms of a warrant for a node; its epoch is remembered.

        Steps: (1) the clock has not gone back; (2) the party consents to the plan;
        (3) the key is new, and gets the next epoch; or it is that of the newest epoch
        under this plan, with the same encryption key, and keeps it; (4) all of it is
        recorded, unless there were too many within an hour. Left to the caller: that
        the testimony is good.

        Args:
            testimony: What the node showed; it names the plan and the TLS key.
            collateral: The text of the collateral that the testimony names.
            at: The custodian's time.
            life: How long the warrant lasts, cut to whole seconds.

        Raises:
            ConfigError: If `life` is no time, or longer than `MAX_LIFE`.
            ProtocolError: If there were too many of late (``warrant-limit``).
            VerificationError: If any other step fails.
        """
        seconds, said = checked_life(life), testimony.said
        if (said.server_party, said.client_party) != (self.party, self.party):
            raise RuntimeError("a warrant for a node of another party")
        with self._file.transaction() as rows:
            # Step 1: when
            now = checked_time(rows, at)
            # Step 2: for what
            plan = self._consented.plan(rows, PlanHash(said.plan_hash))
            # Step 3: for whom
            row, new = grant_warrant(rows, plan, said, at=now, seconds=seconds)
            terms = terms_in(row)
            # Step 4: shown by what
            shown = WarrantSigned(terms=terms, epoch_new=new, testimony=testimony)
            check_warrant_rate(rows, shown, at=now)
            record_shown(rows, shown, collateral=collateral, at=now)
        return terms

    def note_foreign_warrant(
        self, testimony: Testimony, *, collateral: str | None, at: datetime
    ) -> WarrantTerms:
        """Returns the terms of another party's node, its epoch remembered durably.

        Called once its warrant and its evidence were verified. Steps: (1) the clock has
        not gone back; (2) the party consents to the plan; (3) the warrant is in force
        still, also for who reads the record; (4) it is the newest node of its party
        that was seen here, with the same encryption key each time; (5) a node that is
        new here is recorded, unless there were too many within an hour.

        Args:
            testimony: What it showed; its warrant names its epoch.
            collateral: The text of the collateral that the testimony names.
            at: The custodian's time.

        Raises:
            ProtocolError: If there were too many of late (``warrant-limit``).
            VerificationError: If any other step fails: ``warrant-expired``,
                ``epoch-old``, ``epoch-forked``, ``encryption-key-differs``.
        """
        if testimony.warrant is None:
            raise RuntimeError("a node of another party without a warrant")
        terms = testimony.warrant.terms
        with self._file.transaction() as rows:
            # Step 1: when
            now = checked_time(rows, at)
            # Step 2: for what
            self._consented.plan(rows, PlanHash(terms.plan_hash))
            # Step 3: until when. Some time went by since it was verified.
            check_in_force(terms, at=record_time(rows, now), left=_SECONDS_LEFT)
            # Step 4: who
            key = testimony.said.client_encryption_key
            if note_foreign(rows, terms, encryption_key=key, at=now):
                # Step 5: shown by what
                shown = WarrantNoted(testimony=testimony)
                check_warrant_rate(rows, shown, at=now)
                record_shown(rows, shown, collateral=collateral, at=now)
        return terms

    def check_node(self, plan_hash: PlanHash, *, party: str, tls_key: Spki) -> int:
        """Returns the epoch of a node, if it is the newest of its party known here.

        Raises:
            VerificationError: If it is not, or the party does not consent to the plan.
        """
        with self._file.transaction() as rows:
            plan = self._consented.plan(rows, plan_hash)
            return newest_node(rows, plan, party=party, tls_key=tls_key).epoch

    def check_release_rate(self, transcript: Transcript, *, at: datetime) -> None:
        """Checks that a node may be released to once more; writes nothing.

        To be known before a key is fetched. `release` looks again: others may come in
        between.

        Raises:
            ProtocolError: If it had too many of late (``release-limit``).
        """
        with self._file.transaction() as rows:
            check_release_rate(
                rows,
                run_id=transcript.run_id,
                role=transcript.client_role,
                party=transcript.client_party,
                at=any_time(at),
            )

    def release(
        self, transcript: Transcript, *, key_ids: Sequence[str], at: datetime
    ) -> int:
        """Returns the epoch of the node that keys may be released to; it is recorded.

        Called before they leave. Steps: (1) the clock has not gone back; (2) the party
        consents to the plan; (3) the node is the newest of its party: by its warrant
        from here, or by the newest of another party that was noted here, and that is in
        force; (4) no key was revoked here; (5) not too many were released to this
        run, role and party within an hour. Left to the caller: that the node proved
        itself over this transcript, and that these keys are for it.

        Args:
            transcript: What was said in the node's session.
            key_ids: The keys.
            at: The custodian's time.

        Raises:
            ProtocolError: If it had too many of late (``release-limit``).
            VerificationError: If any other step fails.
        """
        with self._file.transaction() as rows:
            # Step 1: when
            now = checked_time(rows, at)
            # Step 2: under what
            plan = self._consented.plan(rows, transcript.plan_hash)
            # Step 3: to whom
            party, key = transcript.client_party, transcript.client_key
            node = newest_node(rows, plan, party=party, tls_key=key)
            check_in_force(node, at=record_time(rows, now))
            check_same_encryption_key(
                node.encryption_key,
                transcript.client_encryption_key,
                epoch=node.epoch,
            )
            # Step 4: what
            for key_id in key_ids:
                check_not_revoked(rows, key_id)
            # Step 5: how often
            released = KeyReleased(
                run_id=plan.run_id,
                plan_hash=transcript.plan_hash,
                role=node.role,
                party=party,
                epoch=node.epoch,
                tls_key_sha256=key_digest(key).hex(),
                encryption_key=transcript.client_encryption_key,
                key_ids=tuple(key_ids),
            )
            record_release(rows, released, at=now)
        return node.epoch

    def note_refusal(
        self,
        testimony: Testimony,
        *,
        collateral: str | None,
        error: CloisterError,
        at: datetime,
    ) -> None:
        """Records that a node which had proved itself was refused, and why.

        A clock that went back does not hinder this. At most `REFUSALS_AN_HOUR` of one
        run, role and party are written.
        """
        with self._file.transaction() as rows:
            refused = refusal(testimony, error)
            record_refusal(rows, refused, collateral=collateral, at=any_time(at))

    def deposit(
        self, plan_hash: PlanHash, *, tls_key: Spki, mark: Mark, at: datetime
    ) -> Mark:
        """Remembers how far a run has come; returns the mark.

        Steps: (1) the clock has not gone back; (2) the party consents to the plan;
        (3) the key is that of the newest epoch, under this plan; (4) the server is not
        older than, nor another beside, the one known; (5) the round is not before the
        one known, nor the same with another state.

        Args:
            plan_hash: The plan the node trains under.
            tls_key: The node's TLS key.
            mark: What the node saw.
            at: The custodian's time.

        Raises:
            VerificationError: If any step fails.
        """
        with self._file.transaction() as rows:
            # Step 1: when
            now = checked_time(rows, at)
            # Step 2: under what
            plan = self._consented.plan(rows, plan_hash)
            # Step 3: from whom
            node = check_newest(rows, plan, party=self.party, tls_key=tls_key)
            # Steps 4 and 5: what
            return deposit_mark(rows, node=node, mark=mark, at=now)

    def mark(self, run_id: str) -> Mark | None:
        """Returns how far a run had come, or None if no mark of it counts."""
        row = self.known_mark(run_id)
        return row.mark if row else None

    def known_mark(self, run_id: str) -> MarkRow | None:
        """Returns the mark of a run with all that is known of it, if it counts."""
        with self._file.transaction() as rows:
            return mark_row(rows, run_id, self.party)

    def rewind(self, run_id: str, *, at: datetime) -> Mark | None:
        """Forgets a run's mark and returns it: its party lets the run go back.

        An operator's own act, never a node's. Epochs stay, and so does which server is
        the newest: one that was replaced deposits nothing more.

        Raises:
            ConfigError: If the party never consented to a plan of the run.
        """
        with self._file.transaction() as rows:
            if not rows.plans("WHERE run_id = ?", run_id):
                raise ConfigError(
                    f"this custodian knows no run {run_id!r}",
                    code="run-unknown",
                    expected="the run of a plan that it signed",
                )
            row = rewind_mark(rows, run_id, self.party)
            if row is not None:
                rewound = MarkRewound(
                    run_id=run_id,
                    round=row.round,
                    state=row.state,
                    audit_head=row.audit_head,
                )
                write_record(rows, rewound, subject=run_id, at=any_time(at))
        return row.mark if row else None

    def records(self) -> Iterator[RecordRow]:
        """Yields the records of the audit as they are now, in order.

        A few at a time, so that others may write meanwhile; what they add is not shown.
        """
        with self._file.transaction() as rows:
            last = next(rows.records("ORDER BY seq DESC LIMIT 1"), None)
        end = 0 if last is None else last.seq + 1
        for first in range(0, end, _RECORDS_AT_ONCE):
            with self._file.transaction() as rows:
                found = tuple(
                    rows.records(
                        "WHERE seq >= ? AND seq < ? ORDER BY seq",
                        first,
                        min(first + _RECORDS_AT_ONCE, end),
                    )
                )
            yield from found

    def transaction(self) -> contextlib.AbstractContextManager[Rows]:
        """Lends the rows to another part of the custodian: to its keys.

        What the body changes is on the disk when it ends; if it raises, nothing is.
        """
        return self._file.transaction()

    def plans(self) -> tuple[PlanRow, ...]:
        """Returns all consents, by run and time."""
        with self._file.transaction() as rows:
            return rows.plans("ORDER BY run_id, at, plan_hash")

    def warrants(self) -> tuple[WarrantRow, ...]:
        """Returns the newest warrant of every epoch, by run and epoch."""
        with self._file.transaction() as rows:
            return rows.warrants("ORDER BY run_id, role, epoch")

    def foreign_warrants(self) -> tuple[ForeignRow, ...]:
        """Returns the newest nodes of other parties that came here, by run."""
        with self._file.transaction() as rows:
            return rows.foreign_warrants("ORDER BY run_id, party")

    def kept_keys(self) -> tuple[KeyRow, ...]:
        """Returns all keys, revoked ones too, by kind, label and time."""
        with self._file.transaction() as rows:
            return rows.kept_keys("ORDER BY kind, label, created_at, key_id")

    def marks(self) -> tuple[MarkRow, ...]:
        """Returns the marks of all runs, by run; not those that were rewound."""
        with self._file.transaction() as rows:
            return rows.marks("WHERE rewound = 0 ORDER BY run_id")
