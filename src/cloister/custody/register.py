"""The register: what a custodian must never forget, and the rules that rest on it.

It keeps the plans its party consented to, the epochs of its party's nodes, and how far
each run had come. Every call is one transaction, on the disk before it returns, so a
warrant that left the custodian is remembered whatever crashes after it.

What a register cannot know: an older copy of its file, put back while no custodian had
it open, looks like any other. Epochs and marks begin again where the copy stands.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cloister.custody.register_file import RegisterFile, create_file
from cloister.custody.register_marks import deposit_mark, mark_row, rewind_mark
from cloister.custody.register_plans import ConsentedPlans, adopt_plan, withdraw_plan
from cloister.custody.register_rows import MarkRow, PlanRow, Rows, WarrantRow
from cloister.custody.register_warrants import check_newest, grant_warrant
from cloister.errors import ConfigError, VerificationError
from cloister.plan.consent import Consent, verify_consent
from cloister.plan.plan import Plan, PlanHash, parse_plan
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import Spki
from cloister.ratls.mark import Mark
from cloister.ratls.warrant import WarrantTerms

# No warrant outlives a week: a party that withdraws must not wait longer.
MAX_LIFE: Final = timedelta(days=7)

_SECOND = timedelta(seconds=1)


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
            now = _checked_time(rows, at)
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
            withdraw_plan(rows, plan_hash, at=max(int(at.timestamp()), 0))

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
        self, plan_hash: PlanHash, *, tls_key: Spki, at: datetime, life: timedelta
    ) -> WarrantTerms:
        """Returns the terms of a warrant for a node; its epoch is remembered.

        Steps: (1) the clock has not gone back; (2) the party consents to the plan;
        (3) the key is new, and gets the next epoch; or it is that of the newest epoch
        under this plan, and keeps it. Left to the caller: that the node is genuine.

        Args:
            plan_hash: The plan the node trains under.
            tls_key: The node's TLS key.
            at: The custodian's time.
            life: How long the warrant lasts, cut to whole seconds.

        Raises:
            ConfigError: If `life` is no time, or longer than `MAX_LIFE`.
            VerificationError: If any step fails.
        """
        seconds = _checked_life(life)
        with self._file.transaction() as rows:
            # Step 1: when
            now = _checked_time(rows, at)
            # Step 2: for what
            plan = self._consented.plan(rows, plan_hash)
            # Step 3: for whom
            row = grant_warrant(
                rows, plan, party=self.party, tls_key=tls_key, at=now, seconds=seconds
            )
        return WarrantTerms(**dataclasses.asdict(row))

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
            now = _checked_time(rows, at)
            # Step 2: under what
            plan = self._consented.plan(rows, plan_hash)
            # Step 3: from whom
            node = check_newest(rows, plan, party=self.party, tls_key=tls_key)
            # Steps 4 and 5: what
            return deposit_mark(rows, node=node, mark=mark, at=now)

    def mark(self, run_id: str) -> Mark | None:
        """Returns how far a run had come, or None if no mark of it counts."""
        with self._file.transaction() as rows:
            row = mark_row(rows, run_id, self.party)
        return row.mark if row else None

    def rewind(self, run_id: str) -> Mark | None:
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
        return row.mark if row else None

    def plans(self) -> tuple[PlanRow, ...]:
        """Returns all consents, by run and time."""
        with self._file.transaction() as rows:
            return rows.plans("ORDER BY run_id, at, plan_hash")

    def warrants(self) -> tuple[WarrantRow, ...]:
        """Returns the newest warrant of every epoch, by run and epoch."""
        with self._file.transaction() as rows:
            return rows.warrants("ORDER BY run_id, role, epoch")

    def marks(self) -> tuple[MarkRow, ...]:
        """Returns the marks of all runs, by run; not those that were rewound."""
        with self._file.transaction() as rows:
            return rows.marks("WHERE rewound = 0 ORDER BY run_id")


def _checked_life(life: timedelta) -> int:
    """Returns a warrant's life in whole seconds."""
    if not _SECOND <= life <= MAX_LIFE:
        raise ConfigError(
            "a warrant cannot last that long, or that short",
            code="warrant-life",
            expected=f"from one second to {MAX_LIFE.days} days",
            got=str(life),
            remedy="Correct warrant_hours in custodian.toml.",
        )
    return life // _SECOND


def _checked_time(rows: Rows, at: datetime) -> int:
    """Returns `at` in Unix seconds, unless the clock was set back.

    Whoever sets the clock back would get warrants for a time that was over, and could
    tell no longer which of two things came first.
    """
    now = int(at.timestamp())
    newest = rows.head.newest_at
    if now < max(newest - CLOCK_TOLERANCE // _SECOND, 0):
        raise VerificationError(
            "the custodian's clock is behind its own database",
            code="clock-behind",
            expected=f"at least {newest} (Unix time), less"
            f" {CLOCK_TOLERANCE // timedelta(minutes=1)} minutes",
            got=str(now),
            remedy="Set the clock of the custodian's machine.",
        )
    return now
