"""Which nodes a run's log says were admitted, judged again, and how long each counted.

Step 5 of `audit_verification`, and what step 7 asks of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.federation.audit_records import AdmissionWithdrawn, NodeAdmitted
from cloister.federation.auditing.opening import Opening
from cloister.federation.auditing.report import Moment
from cloister.federation.auditing.servers import Servers
from cloister.ratls.admission_table import Peer
from cloister.ratls.audit_collateral import KeptCollateral
from cloister.ratls.enrolment_service import describe_peer
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.identity import Spki
from cloister.ratls.proofs import Standing
from cloister.ratls.testimony import Said, verify_testimony


@dataclass(slots=True, kw_only=True)
class _Held:
    """An admission; `ended` is the record that ended it before its time."""

    key: Spki
    key_sha256: str
    expires_at: int
    last_round: int
    ended: int | None = None


class Admissions:
    """Follows who may train under the server in force."""

    def __init__(self) -> None:
        self._held: dict[str, list[_Held]] = {}
        self._epochs = EpochMemory()
        self._nonces: set[bytes] = set()

    def begin_server(self) -> None:
        """Forgets all admissions: a new server has admitted nobody."""
        self._held.clear()

    def admit(
        self,
        unverified: NodeAdmitted,
        *,
        opening: Opening,
        servers: Servers,
        shelf: KeptCollateral,
        at: Moment,
        completed: int,
    ) -> tuple[Peer, bool]:
        """Returns who was admitted, and whether that renewed an admission.

        Steps: (1) the node spoke with the server in force: its keys stand in the
        transcript; (2) with the recorded collateral, at the record's time, the
        testimony proves what the plan asks for; (3) it is the party's newest node, and
        its evidence was not shown before; (4) the record says of it what it proved;
        (5) the admission ends no later than warrant, evidence and plan allow.

        Args:
            unverified: The record.
            opening: What the log's first record fixes.
            servers: Who signs.
            shelf: The collateral in the log so far.
            at: The record's place.
            completed: Rounds completed then.

        Raises:
            VerificationError: If any step fails.
        """
        testimony = unverified.testimony
        words, warrant = testimony.said, testimony.warrant
        # Step 1: whom it met
        _check_met(words, servers)
        # Step 2: what it proved
        standing = verify_testimony(
            testimony,
            plan=opening.plan,
            plan_hash=opening.plan_hash,
            collateral=None
            if testimony.collateral is None
            else shelf.get(testimony.collateral),
            root=servers.root,
            at=at.at,
        )
        if warrant is None:
            raise RuntimeError("a testimony before a server has a warrant")
        peer = Peer(
            role=words.client_role,
            party=words.client_party,
            epoch=warrant.terms.epoch,
            tls_key=Spki(words.client_key),
            encryption_key=words.client_encryption_key,
            standing=standing,
        )
        # Step 3: the newest, and here for the first time
        self._epochs.note(peer.role, peer.party, peer.node)
        if words.server_nonce in self._nonces:
            raise VerificationError(
                f"{peer.party!r} is admitted by what was shown before",
                code="audit-replayed",
                expected="a transcript of its own for every admission",
            )
        self._nonces.add(words.server_nonce)
        # Step 4: what people are told
        _check_words(unverified, peer)
        # Step 5: how long
        _check_end(unverified, opening, standing, at=at, completed=completed)
        return peer, self._hold(unverified, peer, at)

    def withdraw(self, unverified: AdmissionWithdrawn, *, at: Moment) -> None:
        """Ends an admission.

        Raises:
            VerificationError: If there is none of this node.
        """
        held = self._held.get(unverified.party, [])
        if (
            not held
            or held[-1].key_sha256 != unverified.tls_key_sha256
            or held[-1].ended is not None
        ):
            raise VerificationError(
                f"an admission of {unverified.party!r} ends that is not in force",
                code="audit-withdrawn",
                expected="the node that was admitted last",
                got=f"key {unverified.tls_key_sha256[:16]}",
            )
        held[-1].ended = at.record

    def find(
        self, party: str, key_sha256: str, *, sent: Moment, round_number: int
    ) -> Spki:
        """Returns the TLS key of a node that could take part in a round.

        It was admitted at some moment after the round's model went out, and before the
        round was over: an update counts when it comes, and a newer node may take its
        sender's place while others are awaited.

        Args:
            party: Whose node.
            key_sha256: Which one.
            sent: The record whose head went out with the round's model.
            round_number: The round.

        Raises:
            VerificationError: If there was no such admission.
        """
        for held in reversed(self._held.get(party, [])):
            if (
                held.key_sha256 == key_sha256
                and (held.ended is None or held.ended > sent.record)
                and held.expires_at > sent.at.timestamp()
                and held.last_round >= round_number
            ):
                return held.key
        raise VerificationError(
            f"{party!r} took part in round {round_number} with a node that was not"
            " admitted",
            code="audit-not-admitted",
            expected="a node whose admission was in force while the round ran",
            got=f"key {key_sha256[:16]}",
        )

    def forget_before(self, sent: Moment) -> None:
        """Forgets what ended before the model of the last round went out."""
        for party, held in self._held.items():
            self._held[party] = [
                it for it in held if it.ended is None or it.ended > sent.record
            ]

    def _hold(self, unverified: NodeAdmitted, peer: Peer, at: Moment) -> bool:
        """Holds an admission; the party's one before ends here."""
        held = self._held.setdefault(peer.party, [])
        key_sha256 = peer.node.key.hex()
        renewed = any(it.key_sha256 == key_sha256 for it in held)
        for it in held:
            it.ended = at.record if it.ended is None else it.ended
        held.append(
            _Held(
                key=peer.tls_key,
                key_sha256=key_sha256,
                expires_at=unverified.expires_at,
                last_round=unverified.last_round,
            )
        )
        return renewed


def _check_met(words: Said, servers: Servers) -> None:
    server = servers.in_force
    for name, expected, got in (
        ("far side", b"server", words.server_role.encode()),
        ("server key", server.terms.tls_key, words.server_key),
        ("admission key", server.admission_key, words.admission_key),
        ("encryption key", server.encryption_key, words.server_encryption_key),
    ):
        if expected != got:
            raise VerificationError(
                f"the node did not speak with the server in force: another {name}",
                code="audit-met",
                expected=expected.hex(),
                got=got.hex(),
            )


def _check_words(unverified: NodeAdmitted, peer: Peer) -> None:
    """Compares what the record tells people with what was found now."""
    expected = describe_peer(peer)
    if unverified.verdict != expected:
        raise VerificationError(
            f"the record says of {peer.party!r} what it did not prove",
            code="audit-verdict",
            expected=str(expected),
            got=str(unverified.verdict)[:600],
        )


def _check_end(
    unverified: NodeAdmitted,
    opening: Opening,
    standing: Standing,
    *,
    at: Moment,
    completed: int,
) -> None:
    rules, warrant = opening.plan.admission, unverified.testimony.warrant
    # Rounded up: a record's time is in milliseconds, an admission's in seconds.
    ends = at.at.timestamp() + rules.life_seconds + 1
    if warrant is not None:
        ends = min(ends, warrant.terms.expires_at)
    if isinstance(standing, Verdict):
        ends = min(ends, standing.claims.not_after.timestamp())
    for what, most, got in (
        ("time", int(ends), unverified.expires_at),
        # The round that runs is counted too.
        ("round", completed + rules.rounds, unverified.last_round),
    ):
        if got > most:
            raise VerificationError(
                f"an admission lasts longer than it may: its {what}",
                code="audit-expiry",
                expected=f"at most {most}",
                got=str(got),
            )
