"""What a server finds in the audit log that it goes on with.

The log lies on the host's disk. A server goes on only from what servers of this very
run wrote. That their code was the plan's is not looked at here: auditors do
(`audit_verification`). Nor does a log show that it was not cut; the mark that the
server's custodian keeps does.

What it teaches is which nodes were the newest of their parties. Without it a server
that starts anew would admit a former one, and the log be good for nothing from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.federation.audit_records import (
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    ServerIntroduced,
    parse_entry,
)
from cloister.federation.audit_signing import keyid_of, verify_link
from cloister.plan.keys import parse_party_key
from cloister.plan.plan import Plan, PlanHash, Role, parse_plan, plan_hash
from cloister.ratls.epochs import Epoch, EpochMemory, key_digest
from cloister.ratls.identity import Spki
from cloister.ratls.warrant import Warrant, instant, verify_warrant, wanted_terms
from cloister.storage.audit_chain import Link

# What a server writes before its introduction: the opening, and collateral.
_MOST_WAITING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a log holds already.

    Attributes:
        plan_hash: Hash of the plan that it was opened under; None if it is empty.
        collateral: SHA-256 of all collateral in it.
        heads: The head after each record; the newest last. What comes after them was
            written by a server that died before its introduction; nobody was told.
        newest: The newest node of each role and party that its servers were, or met.
        newest_at: The time of its last record; None if it is empty.
        completed: Rounds completed as it tells the run; None if it is empty.
        states: SHA-256 of the state after each round of which it states one, hex. Of
            rounds that were lost and done again only the last time counts.
        sent: The head that went out with the model of each round in it, hex; likewise.
        sealed: Whether it holds the end of the run.
    """

    plan_hash: PlanHash | None
    collateral: frozenset[str]
    heads: tuple[str, ...]
    newest: Mapping[tuple[Role, str], Epoch]
    newest_at: datetime | None
    completed: int | None
    states: Mapping[int, str]
    sent: Mapping[int, str]
    sealed: bool


def read_past(unverified: Iterable[Link], *, run_id: str) -> Past:
    """Returns what a log of this run holds.

    Steps, for each record: (1) the first, and no other, opens this run under a plan;
    (2) a server that is introduced has a warrant of the server's party of that plan;
    (3) the server in force signed it; what comes before an introduction was signed by
    the server that is introduced; (4) a node that it admitted has a warrant of its
    party of that plan, and is its party's newest or an older one.

    Args:
        unverified: The records, a chain.
        run_id: The run.

    Raises:
        StorageError: If a record is malformed.
        VerificationError: If it is another run's log, or somebody else's.
    """
    reader = _Reader(run_id)
    for link in unverified:
        reader.take(link)
    return reader.past()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    role: Role
    party: str
    warrant: Warrant


class _Reader:
    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._plan: Plan | None = None
        self._plan_hash: PlanHash | None = None
        self._key: Spki | None = None
        self._waiting: list[tuple[Link, AnyEntry]] = []
        self._collateral: set[str] = set()
        self._heads: list[str] = []
        self._epochs = EpochMemory()
        self._newest_at: datetime | None = None
        self._completed: int | None = None
        self._states: dict[int, str] = {}
        self._sent: dict[int, str] = {}
        self._sealed = False

    def past(self) -> Past:
        return Past(
            plan_hash=self._plan_hash if self._heads else None,
            collateral=frozenset(self._collateral),
            heads=tuple(self._heads),
            newest=self._epochs.newest(),
            newest_at=self._newest_at,
            completed=self._completed,
            states=self._states,
            sent=self._sent,
            sealed=self._sealed,
        )

    def take(self, link: Link) -> None:
        entry = _parsed(link)
        # Step 1: whose log
        if isinstance(entry, RunOpened) != (link.seq == 0):
            raise _foreign(link, "one record that opens the run, the first", entry)
        if isinstance(entry, RunOpened):
            self._open(link, entry)
        # Step 2: who signs from here on
        if isinstance(entry, ServerIntroduced):
            self._key = self._warranted(link, entry)
            for waiting, its_entry in self._waiting:
                self._keep(waiting, its_entry, self._key)
            self._waiting.clear()
        elif self._key is None or self._waiting or _by_another(link, self._key):
            # No more than a server writes: whoever has no key could fill the memory.
            if (
                not isinstance(entry, RunOpened | CollateralUsed)
                or len(self._waiting) == _MOST_WAITING
            ):
                raise _foreign(link, "the introduction of a server", entry)
            self._waiting.append((link, entry))
            return
        # Step 3: its signature
        self._keep(link, entry, self._key)

    def _open(self, link: Link, entry: RunOpened) -> None:
        try:
            plan = parse_plan(entry.plan)
        except ConfigError as error:
            raise _foreign(link, f"a plan of {self._run_id}", entry) from error
        digest = plan_hash(plan)
        if (plan.run_id, digest) != (self._run_id, entry.plan_hash):
            raise _foreign(link, f"a plan of {self._run_id}", entry)
        self._plan, self._plan_hash = plan, digest

    def _warranted(self, link: Link, entry: ServerIntroduced) -> Spki:
        key = Spki(entry.warrant.terms.tls_key)
        name = self._opened.server.name
        self._learn(
            _Node(role="server", party=name, warrant=entry.warrant),
            record=(link, entry),
            at=instant(link.at_ms // 1000),
        )
        return key

    def _learn(
        self, node: _Node, *, record: tuple[Link, AnyEntry], at: datetime
    ) -> None:
        """Remembers a node of a party, which warranted it."""
        plan, key = self._opened, Spki(node.warrant.terms.tls_key)
        party = next((it for it in plan.party if it.name == node.party), None)
        if party is None or self._plan_hash is None:
            raise _foreign(record[0], "a party of the plan", record[1])
        wanted = wanted_terms(
            run_id=plan.run_id,
            plan_hash=self._plan_hash,
            role=node.role,
            party=party.name,
            tls_key=key,
        )
        terms = verify_warrant(
            node.warrant, key=parse_party_key(party.key), wanted=wanted, at=at
        )
        epoch = Epoch(terms.epoch, key_digest(key))
        self._epochs.learn(node.role, party.name, epoch)

    @property
    def _opened(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("the first record opens the run")
        return self._plan

    def _keep(self, link: Link, entry: AnyEntry, key: Spki) -> None:
        verify_link(link, key=key)
        if isinstance(entry, CollateralUsed):
            self._collateral.add(entry.sha256)
        self._follow(entry)
        # Step 4: whom it met
        if isinstance(entry, NodeAdmitted):
            words, warrant = entry.testimony.said, entry.testimony.warrant
            if warrant is None or warrant.terms.tls_key != words.client_key:
                raise _foreign(link, "an admission by the node's warrant", entry)
            self._learn(
                _Node(
                    role=words.client_role, party=words.client_party, warrant=warrant
                ),
                record=(link, entry),
                # That it was in force is the word of the server that admitted it, and
                # must not keep the next one from starting.
                at=instant(warrant.terms.issued_at),
            )
        self._heads.append(link.head)
        self._newest_at = instant(link.at_ms // 1000)

    def _follow(self, entry: AnyEntry) -> None:
        """Notes how far the run is."""
        match entry:
            case ServerIntroduced():
                self._begin(entry)
            case RoundCompleted():
                self._completed = entry.round
                self._sent[entry.round] = entry.head
                # What the record before it said of this round is another server's.
                self._states.pop(entry.round, None)
                if entry.state is not None:
                    self._states[entry.round] = entry.state
            case RunFailed():
                if entry.state is not None and self._completed is not None:
                    self._states.setdefault(self._completed, entry.state)
            case ModelSealed():
                self._sealed = True
            case _:
                pass

    def _begin(self, entry: ServerIntroduced) -> None:
        """Forgets the rounds that a server begins without: it does them again."""
        completed = self._completed = entry.completed
        self._states = {
            it: state for it, state in self._states.items() if it <= completed
        }
        self._sent = {it: head for it, head in self._sent.items() if it <= completed}
        self._states[completed] = entry.state.hex()


def _parsed(link: Link) -> AnyEntry:
    try:
        return parse_entry(link.entry)
    except StorageError as error:
        raise StorageError(
            f"record {link.seq} of the log is malformed",
            code=error.code,
            expected=error.expected,
            got=error.got,
            remedy="Restore the log as it was written, or give the plan a new run.",
        ) from error


def _by_another(link: Link, key: Spki) -> bool:
    return link.envelope.keyid != keyid_of(key)


def _foreign(link: Link, expected: str, entry: AnyEntry) -> VerificationError:
    return VerificationError(
        f"record {link.seq} of the log is of no server of this run",
        code="audit-foreign",
        expected=expected,
        got=type(entry).__name__,
        remedy="Each run has its own log; move this file away if it is another's.",
    )
