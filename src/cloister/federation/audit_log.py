"""The audit log of a run, as its server writes it.

A record is written before what it records takes effect, and is on the disk then; only
rounds are synced later, with the next mark or before the next state that is kept.
`docs/spec/audit.md` says what a log shows, and what it does not.

The file is long because it is one class: one lock is around all that is written.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from typing_extensions import override

from cloister.errors import CloisterError, StorageError
from cloister.federation.audit import CallAudit, RoundAudit, WarrantAudit
from cloister.federation.audit_introduction import Introduction
from cloister.federation.audit_past import Past
from cloister.federation.audit_phrases import code_of, counted, reason_of, run_over
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    NodeRefused,
    Participant,
    RoundCompleted,
    RunFailed,
    RunOpened,
    WarrantRenewed,
    encode_entry,
)
from cloister.federation.audit_signing import ServerSigner
from cloister.federation.published import Ending
from cloister.federation.refusal_budget import RefusalBudget
from cloister.plan.plan import Role
from cloister.ratls.admission_table import Admitted, Peer
from cloister.ratls.audit import DoorAudit
from cloister.ratls.enrolment_service import describe_peer
from cloister.ratls.epochs import Epoch
from cloister.ratls.identity import Spki
from cloister.ratls.node import Node
from cloister.ratls.testimony import Testimony, collateral_sha256
from cloister.ratls.warrant import Warrant
from cloister.storage.audit_file import AuditFile
from cloister.storage.model_vault import SealedModel

_HEAD_BYTES = 32


class AuditLog(DoorAudit, RoundAudit, CallAudit, WarrantAudit):
    """The log of a run; made by `open_audit`. May be used from any thread.

    Args:
        file: The open file.
        node: The server's node.
        opening: The first record; None where the file has one.
        past: What the file holds.
        dropped_bytes: Size of an unfinished end that was dropped.
        elapsed: A counter of seconds; it says when a minute is over.

    Attributes:
        past: What the file holds.
        newest: The newest node of each role and party that earlier servers were, or
            met. This one admits none that is older.
        dropped_bytes: Size of an unfinished end that was dropped; 0 for none.
    """

    def __init__(
        self,
        file: AuditFile,
        *,
        node: Node,
        opening: RunOpened | None,
        past: Past,
        dropped_bytes: int = 0,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.past = past
        self.newest: Mapping[tuple[Role, str], Epoch] = past.newest
        self.dropped_bytes = dropped_bytes
        self._file = file
        self._node = node
        self._opening = opening
        self._collateral = set(past.collateral)
        self._refusals = RefusalBudget(elapsed)
        self._signer = ServerSigner(node.identity)
        # The own warrant that was recorded last.
        self._warrant: Warrant | None = None
        self._told: Callable[[], None] | None = None
        self._introduced = False
        self._completed = past.completed
        # What is there before its introduction was read, and perhaps never synced.
        self._durable_head = bytes(_HEAD_BYTES)
        # The last round after which the state was stated.
        self._marked: int | None = None
        self._sealed = past.sealed
        self._closed = False
        self._lock = threading.Lock()

    @property
    @override
    def head(self) -> bytes:
        """SHA-256 of the last record, 32 bytes; zeros where there is none."""
        return bytes.fromhex(self._file.head)

    @property
    @override
    def durable_head(self) -> bytes:
        """SHA-256 of the last record that is on the disk for certain, 32 bytes.

        Zeros before this server's introduction.
        """
        return self._durable_head

    @property
    def length(self) -> int:
        """Number of records."""
        return self._file.length

    @property
    def completed(self) -> int | None:
        """Rounds completed as the log tells the run; None where it tells none."""
        return self._completed

    @property
    def marked(self) -> int | None:
        """The last round whose state this server stated; a mark of its head is of it.

        None before its introduction.
        """
        return self._marked

    @property
    def sealed(self) -> bool:
        """Whether the end of the run is recorded; nothing follows it."""
        return self._sealed

    @contextlib.contextmanager
    def telling(self, told: Callable[[], None]) -> Iterator[None]:
        """Has `told` called after each record that is no round, while this lasts.

        Rounds have marks, which bring the head to the custodians. Other records would
        wait for the next round, and a host could cut them meanwhile.

        Args:
            told: Called in the thread that recorded; the log may be asked then.
        """
        self._told = told
        try:
            yield
        finally:
            self._told = None

    def introduce(self, *, completed: int, state: bytes, admission_key: Spki) -> None:
        """Introduces this server: it signs what is written from here on.

        Takes evidence, and may fetch collateral: it belongs in a thread.

        Args:
            completed: Rounds completed in the state that it begins with.
            state: SHA-256 of that state.
            admission_key: Of its admission CA.

        Raises:
            VerificationError: If its own plan refuses its evidence.
            CloisterError: If it has no evidence, or the log cannot be written.
        """
        with self._lock:
            if self._introduced:
                raise RuntimeError("a server is introduced once")
            begun = Introduction(
                node=self._node,
                admission_key=admission_key,
                completed=completed,
                state=state,
                restart=self._opening is None,
            )
            # Before anything is written: a server that is refused leaves no trace.
            collateral = begun.collateral(self.head)
            if self._opening is not None:
                self._append(self._opening)
            self._keep_collateral(collateral.to_json())
            introduced = begun.entry(self.head, collateral=collateral)
            self._append(introduced)
            self._warrant = introduced.warrant
            self._sync()
            self._introduced = True
            self._completed = self._marked = completed

    @override
    def node_admitted(
        self, testimony: Testimony, collateral: str | None, *, admitted: Admitted
    ) -> None:
        entry = NodeAdmitted(
            testimony=testimony,
            expires_at=int(admitted.expires_at.timestamp()),
            last_round=admitted.last_round,
            verdict=describe_peer(admitted.peer),
        )
        # What cannot be recorded does not happen.
        if not self._record(entry, collateral=collateral):
            raise run_over()

    @override
    def node_refused(
        self,
        testimony: Testimony,
        collateral: str | None,
        *,
        role: Role,
        party: str,
        error: CloisterError,
    ) -> None:
        entry = NodeRefused(
            role=role,
            party=party,
            where="enrolment",
            code=code_of(error),
            reason=reason_of(error),
            testimony=testimony,
        )
        self._refused(entry, collateral=collateral)

    @override
    def call_refused(self, peer: Peer, error: CloisterError) -> None:
        entry = NodeRefused(
            role=peer.role,
            party=peer.party,
            where="training",
            code=code_of(error),
            reason=reason_of(error),
            testimony=None,
        )
        self._refused(entry, collateral=None)

    @override
    def admission_withdrawn(self, admitted: Admitted, error: CloisterError) -> None:
        self._record(
            AdmissionWithdrawn(
                party=admitted.peer.party,
                tls_key_sha256=admitted.peer.node.key.hex(),
                code=code_of(error),
                reason=reason_of(error),
            )
        )

    @override
    def warrant_renewed(self, warrant: Warrant) -> None:
        with self._begun():
            recorded = not self._sealed and self._keep_warrant(warrant)
            if recorded:
                self._sync()
        if recorded:
            self._tell()

    @override
    def round_completed(
        self,
        number: int,
        *,
        head: bytes,
        participants: tuple[Participant, ...],
        state: bytes | None,
    ) -> None:
        entry = RoundCompleted(
            round=number,
            head=head.hex(),
            participants=participants,
            state=None if state is None else state.hex(),
        )
        with self._begun():
            # A deposit may have renewed it just now, and this round rests on it.
            renewed = self._keep_warrant(self._node.warrant.current)
            self._append(*counted(self._refusals.due()), entry)
            # With a mark: others are told of this head, and keep it.
            if renewed or state is not None:
                self._sync()
            self._completed = number
            if state is not None:
                self._marked = number

    @override
    def sync(self) -> None:
        with self._begun():
            self._sync()

    def model_sealed(self, sealed: SealedModel, *, rounds: int, ending: Ending) -> None:
        """Records the end of the run.

        Args:
            sealed: The sealed model.
            rounds: Rounds trained.
            ending: How training ended.

        Raises:
            StorageError: If it cannot be written.
        """
        if ending.model.state is None:
            raise RuntimeError("the final model states its state")
        self._last(
            ModelSealed(
                sha256=sealed.sha256,
                size_bytes=sealed.size_bytes,
                recipients=sealed.recipients,
                rounds=rounds,
                state=ending.model.state.hex(),
                head=ending.model.audit_head.hex(),
                reports=ending.reports,
            )
        )

    def run_failed(self, error: CloisterError, *, state: bytes | None) -> None:
        """Records that the server gave up.

        Args:
            error: Why.
            state: SHA-256 of the state after the rounds so far; None if it is not
                durable.

        Raises:
            StorageError: If it cannot be written.
        """
        self._last(
            RunFailed(
                code=code_of(error),
                reason=reason_of(error),
                state=None if state is None else state.hex(),
            )
        )

    def close(self) -> None:
        """Closes the file; again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # What was counted and not written yet; of a log that cannot be written, the
            # run has heard before.
            with contextlib.suppress(StorageError):
                if left_out := counted(self._refusals.rest()):
                    self._append(*left_out)
                    self._sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _record(self, entry: AnyEntry, *, collateral: str | None = None) -> bool:
        """Returns whether it was recorded: after the end nothing is."""
        with self._begun():
            if self._sealed:
                return False
            self._keep_collateral(collateral)
            self._append(entry)
            self._sync()
        self._tell()
        return True

    def _refused(self, entry: NodeRefused, *, collateral: str | None) -> None:
        with self._begun():
            if self._sealed:  # it changes nothing any more
                return
            entries = counted(self._refusals.due())
            if self._refusals.admits(entry.party):
                self._keep_collateral(collateral)
                entries.append(entry)
            if entries:
                self._append(*entries)
                self._sync()
        if entries:
            self._tell()

    def _last(self, entry: ModelSealed | RunFailed) -> None:
        with self._begun():
            if self._sealed:
                raise run_over()
            self._keep_warrant(self._node.warrant.current)
            self._append(*counted(self._refusals.rest()), entry)
            self._sealed = isinstance(entry, ModelSealed)
            self._sync()
            if isinstance(entry, RunFailed) and entry.state is not None:
                self._marked = self._completed

    def _sync(self) -> None:
        """Has all records on the disk when it returns; the lock is held."""
        self._file.sync()
        self._durable_head = self.head

    @contextlib.contextmanager
    def _begun(self) -> Iterator[None]:
        with self._lock:
            if not self._introduced:
                raise RuntimeError("introduce the server first")
            yield

    def _keep_collateral(self, text: str | None) -> None:
        """Writes collateral, unless there is none or the log has it."""
        if text is None or (sha256 := collateral_sha256(text)) in self._collateral:
            return
        self._append(CollateralUsed(sha256=sha256, text=text))
        self._collateral.add(sha256)

    def _keep_warrant(self, warrant: Warrant) -> bool:
        """Writes the own warrant if it is a new one; returns whether it did.

        One that has ended carries nothing on, and no auditor would take it.
        """
        ended = warrant.terms.expires_at <= self._node.clock().timestamp()
        if ended or warrant == self._warrant:
            return False
        self._append(WarrantRenewed(warrant=warrant))
        self._warrant = warrant
        return True

    def _tell(self) -> None:
        """Outside of the lock: who is told may ask for the head."""
        told = self._told
        if told is not None:
            told()

    def _append(self, *entries: AnyEntry) -> None:
        at_ms = int(self._node.clock().timestamp() * 1000)
        for entry in entries:
            self._file.append(encode_entry(entry), at_ms=at_ms, signer=self._signer)
