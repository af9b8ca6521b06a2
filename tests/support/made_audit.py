"""A run's audit log, made by real servers and nodes without any network.

The log is written by the real `AuditLog`. Whoever wants a lie in it, has the server's
own key sign it (`lie`): that is more than any attacker can, and shows what the
verification itself finds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import msgspec
from tests.support.federation_in_memory import (
    Federation,
    HandClock,
    make_federation,
)
from tests.support.plan_tree import Tree, put, toml_of

from cloister.errors import CloisterError
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_records import AnyEntry, Participant, encode_entry
from cloister.federation.audit_records import parse_entry as parse_record
from cloister.federation.audit_signing import ServerSigner
from cloister.federation.audit_start import open_audit
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors, AuditReport
from cloister.federation.messages import ModelHeader
from cloister.federation.published import Ending
from cloister.federation.rounds.cohort import draw
from cloister.plan.consent import format_consent, sign_consent
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, parse_plan, plan_hash
from cloister.ratls.admission import AdmissionAuthority, new_authority
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.audit_key import countersign
from cloister.ratls.certificate import make_certificate
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.epochs import key_digest
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.server_enrolment import ServerEnrolment
from cloister.ratls.signed_head import HEAD_TYPE, encode_head, head_from_mark
from cloister.storage.audit_chain import Link, next_link, parse_links
from cloister.storage.dsse import Envelope, encode_envelope
from cloister.storage.model_vault import SealedModel

ROUNDS = 3
WORKERS = ("alice", "bob")
LIFE = timedelta(days=30)
STEP = timedelta(seconds=1)
MODEL = b"the sealed model"


def audited_federation(
    directory: Path,
    *,
    change: Callable[[Tree], Tree] = lambda tree: tree,
    more_workers: tuple[str, ...] = (),
) -> Federation:
    """Returns a federation whose run has three rounds."""

    def shorter(tree: Tree) -> Tree:
        put(tree, ("training", "rounds"), ROUNDS)
        put(tree, ("training", "schedule"), {"name": "constant"})
        return change(tree)

    return make_federation(directory, change=shorter, more_workers=more_workers)


def sampling(tree: Tree, seats: int) -> Tree:
    """Has so many workers drawn for each round; returns the same tree."""
    put(tree, ("training", "mode"), "fedavg")
    put(tree, ("training", "local_steps"), 2)
    put(tree, ("training", "local_optimizer"), {"learning_rate": 0.1})
    return put(tree, ("rounds", "sample"), seats)


def with_quorum(tree: Tree, quorum: int) -> Tree:
    """Has rounds end with so many updates at the deadline; returns the same tree."""
    put(tree, ("rounds", "deadline_seconds"), 60)
    return put(tree, ("rounds", "quorum"), quorum)


def text_of(plan: Plan) -> bytes:
    """Returns a plan as a file of it may read."""
    tree = _without_none(msgspec.to_builtins(plan))
    assert isinstance(tree, dict)
    text = toml_of(tree)
    assert plan_hash(parse_plan(text)) == plan_hash(plan)
    return text


def state_after(number: int) -> bytes:
    """Returns a digest that stands for the state after a round."""
    return bytes([number]) * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A model that went out: its round, and the head that went with it."""

    round: int
    head: bytes


class AuditedRun:
    """A run of which the audit log is all there is.

    Args:
        federation: Who takes part.
        path: The log.

    Attributes:
        clock: Everybody's.
        server: The server's node.
        workers: The newest node of each worker.
        log: The server's log.
    """

    def __init__(self, federation: Federation, path: Path) -> None:
        self.federation = federation
        self.path = path
        self.clock = HandClock()
        self.workers: dict[str, Node] = {}
        self.completed = 0
        self.server: Node
        self.log: AuditLog
        self._authority: AdmissionAuthority
        self._table: AdmissionTable

    def begin(
        self,
        *,
        epoch: int = 1,
        completed: int = 0,
        known: Mark | None = None,
        shown_epoch: int | None = None,
    ) -> None:
        """Has a server open the log, or go on with it, and introduce itself.

        Args:
            epoch: Its epoch; a log is opened by a newer server than the last alone.
            completed: Rounds completed in the state that it begins with.
            known: The mark that its custodian has.
            shown_epoch: The epoch of the warrant that it shows then, if it lies.
        """
        self.server = self.federation.node("aggregator", clock=self.clock, epoch=epoch)
        self._authority = new_authority(at=self.clock(), life=LIFE)
        self._table = AdmissionTable(self.server.clock)
        self.completed = completed
        self.log = open_audit(
            self.path,
            node=self.server,
            consents=consents_of(self.federation, self.clock),
            plan_text=text_of(self.federation.plan),
            known=known,
            known_under=self.server.plan_hash,
        )
        if shown_epoch is not None:
            self.server.warrant.renew(
                self.federation.warrant(
                    "aggregator",
                    self.server.identity.tls_spki,
                    epoch=shown_epoch,
                    issued_at=self.clock(),
                )
            )
        self.log.introduce(
            completed=completed,
            state=state_after(completed),
            admission_key=self._authority.spki,
        )

    def admit(self, party: str, *, node: Node | None = None, epoch: int = 1) -> Node:
        """Has a worker's node prove itself to the server; a fresh one unless given."""
        self.clock.forward(STEP)
        node = node or self.federation.node(party, clock=self.clock, epoch=epoch)
        self.workers[party] = node
        client = ClientEnrolment(node)
        door = ServerEnrolment(
            self.server,
            authority=self._authority,
            table=self._table,
            audit=self.log,
        )
        client.pin(
            make_certificate(
                self.server.identity, self.server.platform, at=self.clock(), life=LIFE
            )
        )
        challenge = door.challenge(client.hello())
        proof = client.prove(door.prove(client.answer(challenge)))
        door.prepare(proof)
        door.admit(proof)
        return node

    def admit_all(self, *, epoch: int = 1) -> None:
        """Has a fresh node of every worker prove itself."""
        for party in self.federation.plan.workers:
            self.admit(party.name, epoch=epoch)

    def publish(self) -> Sent:
        """Sends a model out."""
        return Sent(round=self.completed + 1, head=self.log.head)

    def seated(self, number: int) -> tuple[str, ...]:
        """Returns who is drawn for a round among all workers; all where none are."""
        return draw(
            [party.name for party in self._plan.workers],
            seats=self._plan.seats,
            seed=self._plan.training.seed,
            round_number=number,
        )

    def participants(
        self, sent: Sent, parties: Iterable[str] | None = None
    ) -> tuple[Participant, ...]:
        """Returns parties' parts, countersigned; of all workers unless given."""
        if parties is None:
            parties = (party.name for party in self._plan.workers)
        return tuple(self.part(party, sent) for party in parties)

    def part(self, party: str, sent: Sent) -> Participant:
        """Returns a worker's part in what follows a model."""
        node = self.workers[party]
        return Participant(
            party=party,
            tls_key_sha256=key_digest(node.identity.tls_spki).hex(),
            countersignature=countersign(
                node.identity,
                run_id=self._plan.run_id,
                plan_hash=plan_hash(self._plan),
                round_number=sent.round,
                head=sent.head,
            ),
        )

    def complete(self, sent: Sent, parties: Iterable[str] | None = None) -> None:
        """Records the round that a model was for; with all of its seats by default."""
        self.clock.forward(STEP)
        self.log.round_completed(
            sent.round,
            head=sent.head,
            participants=self.participants(
                sent, self.seated(sent.round) if parties is None else parties
            ),
            state=state_after(sent.round),
        )
        self._table.advance(sent.round + 1)
        self.completed = sent.round

    def train(self, rounds: int = ROUNDS) -> None:
        """Does rounds until so many are completed."""
        while self.completed < rounds:
            self.complete(self.publish())

    def seal(
        self, parties: Iterable[str] | None = None, *, model: SealedModel | None = None
    ) -> None:
        """Seals the model, on which all workers reported unless others are given.

        Args:
            parties: Who reported.
            model: The sealed model, if there really is one.
        """
        sent = self.publish()
        self.clock.forward(STEP)
        self.log.model_sealed(
            model
            or SealedModel(
                path=self.path.with_name("model.safetensors.age"),
                size_bytes=len(MODEL),
                sha256="5" * 64,
                recipients=self._plan.recipients,
            ),
            rounds=self.completed,
            ending=Ending(
                model=ModelHeader(
                    round=sent.round,
                    layout="0" * 64,
                    evaluate=True,
                    final=True,
                    audit_head=sent.head,
                    state=state_after(self.completed),
                ),
                reports=self.participants(sent, parties),
            ),
        )

    def whole(self, *, model: SealedModel | None = None) -> None:
        """Does all of a run, to a sealed model if there really is one."""
        self.begin()
        self.admit_all()
        self.train()
        self.seal(model=model)
        self.log.close()

    def lied(self, *entries: AnyEntry | bytes, at: timedelta = STEP) -> bytes:
        """Returns the log with records that say anything, signed by the server."""
        at_ms = int((self.clock() + at).timestamp() * 1000)
        links = self.links() if self.path.exists() else []
        for entry in entries:
            links.append(
                next_link(
                    links[-1] if links else None,
                    entry=entry if isinstance(entry, bytes) else encode_entry(entry),
                    at_ms=at_ms,
                    signer=ServerSigner(self.server.identity),
                )
            )
        return lines_of(*links)

    def lie(self, *entries: AnyEntry | bytes, at: timedelta = STEP) -> None:
        """Puts such a log in the place of the real one, which ends here."""
        self.log.close()
        self.path.write_bytes(self.lied(*entries, at=at))

    def mark(self) -> Mark:
        """Returns what a node deposits with its custodian now."""
        return Mark(
            round=self.completed,
            state=state_after(self.completed),
            server_epoch=self.server.warrant.current.terms.epoch,
            server_key=key_digest(self.server.identity.tls_spki),
            audit_head=bytes.fromhex(self.links()[-1].head),
        )

    def head(self, party: str, mark: Mark | None = None) -> Envelope:
        """Returns a custodian's statement on the log as it is now, or on a mark."""
        return signed_head(self.federation, party, mark or self.mark(), at=self.clock)

    def links(self) -> list[Link]:
        """Returns the log's records."""
        return links_in(self.path.read_bytes())

    def entries(self) -> list[AnyEntry]:
        """Returns what they say."""
        return [parse_record(link.entry) for link in self.links()]

    def verify(self, *heads: Envelope, anchors: Anchors | None = None) -> AuditReport:
        """Verifies the log as it lies there."""
        return verify_bytes(self.path.read_bytes(), *heads, anchors=anchors)

    @property
    def anchors(self) -> Anchors:
        """What an auditor brings who was told of the plan."""
        return Anchors(plan_hash=plan_hash(self._plan))

    @property
    def _plan(self) -> Plan:
        return self.federation.plan


def consents_of(federation: Federation, clock: HandClock) -> tuple[bytes, ...]:
    """Returns everybody's consent to a plan, as their files hold it."""
    return tuple(
        format_consent(
            sign_consent(
                federation.plan,
                party=party.name,
                key=federation.keys[party.name],
                at=clock(),
            )
        )
        for party in federation.plan.party
    )


def signed_head(
    federation: Federation, party: str, mark: Mark, *, at: Callable[[], object]
) -> Envelope:
    """Returns a party's statement on a mark."""
    now = at()
    payload = encode_head(
        head_from_mark(
            mark,
            run_id=federation.plan.run_id,
            plan_hash=plan_hash(federation.plan),
            party=party,
            at=int(now.timestamp()),  # type: ignore[attr-defined]
        )
    )
    key = federation.keys[party]
    unsigned = Envelope(
        payload=payload,
        payload_type=HEAD_TYPE,
        keyid=format_party_key(key),
        signature=b"-",
    )
    return replace(unsigned, signature=key.sign(unsigned.signed))


def links_in(log: bytes) -> list[Link]:
    """Returns a log's records."""
    return list(parse_links(io.BytesIO(log)))


def lines_of(*links: Link) -> bytes:
    """Returns records as a file holds them."""
    return b"".join(encode_envelope(link.envelope) + b"\n" for link in links)


def verify_bytes(
    log: bytes, *heads: Envelope, anchors: Anchors | None = None
) -> AuditReport:
    """Verifies a log."""
    return verify_audit(
        parse_links(io.BytesIO(log)), anchors=anchors or Anchors(), heads=heads
    )


def code_of_log(log: bytes, *heads: Envelope, anchors: Anchors | None = None) -> str:
    """Returns the code of the error in which a log's verification ends."""
    try:
        verify_bytes(log, *heads, anchors=anchors)
    except CloisterError as error:
        return error.code
    return "holds"


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(it) for it in value]
    return value
