"""Custodians' signed heads, held against a run's log: was it cut, or forked?

Step 9 of `audit_verification`. A log that ends early is a good log; only who knew a
later head can say that it was longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature

from cloister.errors import StorageError, VerificationError
from cloister.federation.auditing.opening import Opening
from cloister.federation.auditing.report import Moment, Proof
from cloister.federation.auditing.rounds import Progress
from cloister.federation.auditing.servers import Server
from cloister.plan.keys import parse_party_key
from cloister.ratls.signed_head import HEAD_TYPE, SignedHead, parse_head
from cloister.ratls.warrant import instant
from cloister.storage.dsse import Envelope


def verify_signed_head(unverified: Envelope, *, opening: Opening) -> SignedHead:
    """Returns a custodian's statement that holds.

    Steps: (1) the envelope holds such a statement; (2) it is on this run and plan; (3)
    it is by a party of the plan, and signed with the key that the plan names.

    Raises:
        StorageError: If step 1 fails.
        VerificationError: If step 2 or 3 fails.
    """
    # Step 1: the form
    if unverified.payload_type != HEAD_TYPE:
        raise StorageError(
            "this is no statement of a custodian on a log's head",
            code="audit-head-malformed",
            expected=HEAD_TYPE,
            got=unverified.payload_type[:100],
        )
    head = parse_head(unverified.payload)
    # Step 2: on what
    plan = opening.plan
    known = {party.name: party.key for party in plan.party}
    for what, expected, got in (
        ("run", plan.run_id, head.run_id),
        ("plan", opening.plan_hash.hex(), head.plan_hash.hex()),
        # What has a space in it is nobody's name.
        (
            "party",
            head.party if head.party in known else "a party of the plan",
            head.party,
        ),
    ):
        if expected != got:
            raise VerificationError(
                f"the head is of another {what} than the log",
                code="audit-head-foreign",
                expected=expected,
                got=got,
            )
    # Step 3: by whom
    key = known[head.party]
    not_theirs = VerificationError(
        f"the head is not signed by {head.party!r}",
        code="audit-head-signature",
        expected=f"a signature by {key}",
        got=f"one said to be by {unverified.keyid[:80]}",
    )
    if unverified.keyid != key:
        raise not_theirs
    try:
        parse_party_key(key).verify(unverified.signature, unverified.signed)
    except InvalidSignature as error:
        raise not_theirs from error
    return head


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """What is so at one place of the log.

    Attributes:
        at: The last record.
        server: The server in force.
        progress: How far the run is.
    """

    at: Moment
    server: Server
    progress: Progress


class Heads:
    """Looks for each statement's place while the log goes by.

    Args:
        unverified: Envelopes that custodians signed.
        opening: What the log's first record fixes.
    """

    def __init__(self, unverified: Sequence[Envelope], *, opening: Opening) -> None:
        self._all = [verify_signed_head(it, opening=opening) for it in unverified]
        self._found: dict[bytes, Moment] = {}
        self._wanted: dict[bytes, list[SignedHead]] = {}
        for said in self._all:
            self._wanted.setdefault(said.audit_head, []).append(said)
        self._servers: dict[int, bytes] = {}

    def note_server(self, server: Server) -> None:
        """Notes which server an epoch is."""
        self._servers[server.terms.epoch] = bytes.fromhex(server.key_sha256)

    def is_wanted(self, head: str) -> bool:
        """Returns whether a statement names this head."""
        return bytes.fromhex(head) in self._wanted

    def meet(self, head: str, here: Here) -> None:
        """Holds what custodians say of a head against what is so at its place.

        Raises:
            VerificationError: If server, round or state are others.
        """
        digest = bytes.fromhex(head)
        self._found[digest] = here.at
        for said in self._wanted.get(digest, ()):
            for what, expected, got in (
                ("server epoch", here.server.terms.epoch, said.server_epoch),
                ("server key", here.server.key_sha256, said.server_key.hex()),
                # A mark is of a round after which the state was computed, so the log
                # has it. It is deposited again with later heads, until the next one.
                ("round", here.progress.marked, said.round),
                ("state", here.progress.state, said.state.hex()),
            ):
                if expected != got:
                    raise VerificationError(
                        f"{said.party!r} knows another {what} at this head",
                        code="audit-head-differs",
                        expected=str(expected),
                        got=str(got),
                        remedy="The log and its parties' nodes were told different"
                        " things.",
                    )

    def proofs(self, end: Here) -> tuple[Proof, ...]:
        """Returns what the statements prove, when the whole log has gone by.

        Raises:
            VerificationError: If one of them has no place in it: the log was cut
                before it, or is another one.
            ProtocolError: If its time lies outside any calendar.
        """
        for said in self._all:
            if said.audit_head not in self._found:
                raise self._missing(said, end)
        return tuple(
            Proof(
                party=said.party,
                upto=self._found[said.audit_head],
                round=said.round,
                had_at=instant(said.at),
            )
            for said in self._all
        )

    def _missing(self, said: SignedHead, end: Here) -> VerificationError:
        """Returns what it means that a head is not in the log.

        One server writes one log. If this log goes on behind the place where the head
        should be, the other log was another one; if it ends before, it may be the same.
        """
        newest = end.server.terms.epoch
        known = self._servers.get(said.server_epoch)
        later = said.server_epoch > newest
        beyond = known == said.server_key and (
            said.server_epoch == newest and said.round >= end.progress.marked
        )
        where = (
            f"record {end.at.record}, round {end.progress.completed}, epoch {newest}"
        )
        got = (
            f"head {said.audit_head.hex()} of round {said.round},"
            f" epoch {said.server_epoch}, known to {said.party!r}"
        )
        if later or beyond:
            return VerificationError(
                f"the log was cut: {said.party!r} knows a head that is not in it",
                code="audit-cut",
                expected=f"a log that does not end at {where}",
                got=got,
                remedy="Ask the server's host for the whole log.",
            )
        return VerificationError(
            f"there are two logs of this run: {said.party!r} was shown another one",
            code="audit-forked",
            expected=f"that head in this log, which goes on to {where}",
            got=got,
            remedy="Keep both logs and all heads. Workers sign one head a round: whose"
            " signature is under both shows who is not what it says.",
        )
