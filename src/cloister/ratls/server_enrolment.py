"""The server's side of the mutual challenge, step by step, without any network.

It takes the client's message and gives its own next one. The numbers are those of
`challenge.py` and of the design's seventh step of trust. A wrong order of calls is a
`RuntimeError`; a client that is not what it must be, an error.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from cloister.attestation.collateral import Collateral
from cloister.attestation.policy import Policy, Verdict, appraise
from cloister.errors import VerificationError
from cloister.ratls.admission import AdmissionAuthority
from cloister.ratls.admission_table import AdmissionTable, Admitted, Peer
from cloister.ratls.audit import DoorAudit
from cloister.ratls.challenge import (
    NONCE_BYTES,
    VERSION,
    Admission,
    Answer,
    Challenge,
    ClientProof,
    EvidenceProof,
    Hello,
    ServerProof,
)
from cloister.ratls.enrolment_pace import EnrolmentPace
from cloister.ratls.epochs import Epoch, key_digest
from cloister.ratls.identity import Spki, parse_spki
from cloister.ratls.limits import USUAL_LIMITS
from cloister.ratls.node import Node
from cloister.ratls.proofs import (
    Standing,
    check_proof_kind,
    verify_client_proof,
    verify_possession,
)
from cloister.ratls.testimony import Shown, shown
from cloister.ratls.transcript import Nonce, Transcript
from cloister.ratls.warrant import Warrant, WarrantTerms

# An admission is recorded some milliseconds after it is judged, and ends at a whole
# second; one that is shorter would be over, or almost, before it takes effect.
LEAST_LIFE_SECONDS = 2


class ServerEnrolment:
    """The server's side of one client's enrolment.

    Args:
        node: The server's own node.
        authority: Issues the admission certificate.
        table: Receives the admitted peer.
        audit: Records the admission, before it takes effect.
        pace: Counts the party's enrolments; one of its own unless given.
    """

    def __init__(
        self,
        node: Node,
        *,
        authority: AdmissionAuthority,
        table: AdmissionTable,
        audit: DoorAudit,
        pace: EnrolmentPace | None = None,
    ) -> None:
        self._node = node
        self._authority = authority
        self._table = table
        self._audit = audit
        self._pace = pace or EnrolmentPace(USUAL_LIMITS.enrolments_a_minute)
        self._transcript: Transcript | None = None
        self._warrant: Warrant | None = None
        self._terms: WarrantTerms | None = None
        self._proof: ClientProof | None = None
        self._collateral: Collateral | None = None

    def shown(self) -> Shown | None:
        """Returns what the client showed so far; None until its warrant held.

        Before that it is a stranger, whose words are worth no record.
        """
        if self._transcript is None or self._warrant is None:
            return None
        return shown(
            self._transcript,
            warrant=self._warrant,
            proof=self._proof,
            collateral=self._collateral,
        )

    @property
    def proved(self) -> bool:
        """Whether message 4 held, so that the client may hear of this side."""
        return self._terms is not None

    def challenge(self, hello: Hello) -> Challenge:
        """(3) Checks the claim against the plan and answers with a nonce.

        Raises:
            VerificationError: If the client is not of this run, plan and role.
        """
        node = self._node
        _check_hello(hello, node)
        nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._transcript = Transcript(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            client_role=hello.role,
            client_party=hello.party,
            server_role="server",
            server_party=node.party,
            client_nonce=Nonce(hello.nonce),
            server_nonce=nonce,
            client_key=Spki(hello.tls_key),
            server_key=node.identity.tls_spki,
            admission_key=self._authority.spki,
            client_encryption_key=hello.encryption_key,
            server_encryption_key=node.identity.encryption_public,
        )
        return Challenge(
            nonce=nonce,
            admission_key=self._authority.spki,
            encryption_key=node.identity.encryption_public,
        )

    def prove(self, answer: Answer) -> ServerProof:
        """(5) Checks the client's signature and warrant, then gives its evidence.

        Raises:
            VerificationError: If either fails; no evidence was made then.
            ProtocolError: If its party enrols too often; likewise.
        """
        node, transcript = self._node, self._transcript
        if transcript is None:
            raise RuntimeError("challenge first")
        verify_possession(answer.signature, transcript)
        terms = node.check_warrant(
            answer.warrant,
            role=transcript.client_role,
            party=transcript.client_party,
            tls_key=transcript.client_key,
        )
        # From here on it is known: also if its party has a newer node.
        self._warrant = answer.warrant
        self._check_epoch(terms)
        # After it: a node that was replaced takes nothing from the newer one.
        self._pace.take(terms.party)
        self._terms = terms
        quote = node.platform.quote(transcript.server_report_data())
        return ServerProof(warrant=node.warrant.current, quote=quote)

    def prepare(self, proof: ClientProof) -> None:
        """Has at hand what it takes to judge the client's proof.

        May wait for a service, so it belongs in a thread. What needs no collateral is
        checked first: a client that is refused anyway has nobody asked.

        Raises:
            CloisterError: If the proof is of the wrong kind, or evidence was made for
                something else, is by no genuine platform, or its collateral cannot be
                had.
        """
        node, transcript = self._node, self._transcript
        if transcript is None or self._terms is None:
            raise RuntimeError("prove first")
        self._proof = proof
        check_proof_kind(proof, party=node.plan.find_party(transcript.client_party))
        if isinstance(proof, EvidenceProof):
            self._collateral = node.appraiser.fetch_collateral(
                proof.quote, expected_report_data=transcript.client_report_data()
            )

    def admit(self, proof: ClientProof) -> tuple[Peer, Admission]:
        """(7) Verifies what the client proves and admits its key, or renews it.

        Raises:
            VerificationError: If the proof fails, or what it rests on is about to
                end; the table is unchanged then.
            StorageError: If the admission cannot be recorded; likewise.
        """
        node, transcript, terms = self._node, self._transcript, self._terms
        if transcript is None or terms is None:
            raise RuntimeError("prove first")
        self._proof = proof
        party = node.plan.find_party(transcript.client_party)
        standing = verify_client_proof(
            proof,
            party=party,
            transcript=transcript,
            appraise=lambda quote, bound: self._appraise(
                quote, policy=node.plan.policy_of(party.name), bound=bound
            ),
        )
        peer = Peer(
            role=transcript.client_role,
            party=transcript.client_party,
            epoch=terms.epoch,
            tls_key=transcript.client_key,
            encryption_key=transcript.client_encryption_key,
            standing=standing,
        )
        at = node.clock()
        admitted = Admitted(
            peer=peer,
            expires_at=_expiry(node, terms, standing, at=at),
            last_round=self._table.round + node.plan.admission.rounds - 1,
            quote=proof.quote if isinstance(proof, EvidenceProof) else None,
            report_data=transcript.client_report_data(),
        )
        certificate = self._authority.issue(peer, at=at, expires_at=admitted.expires_at)
        self._record(terms, admitted)
        self._table.admit(admitted)
        return peer, Admission(
            certificate=certificate,
            expires_at=int(admitted.expires_at.timestamp()),
            last_round=admitted.last_round,
        )

    def _appraise(
        self, unverified_quote: bytes, *, policy: Policy, bound: bytes
    ) -> Verdict:
        """Judges evidence like `Appraiser.judge`; keeps with what, if it is refused."""
        appraiser = self._node.appraiser
        self._collateral = appraiser.fetch_collateral(
            unverified_quote, expected_report_data=bound
        )
        claims = appraiser.verify_with(
            unverified_quote, collateral=self._collateral, expected_report_data=bound
        )
        return appraise(claims, policy)

    def _record(self, terms: WarrantTerms, admitted: Admitted) -> None:
        """Records an admission that the table will not refuse any more.

        The table changes in the event loop alone, where nothing comes between this and
        the admission: so each of both is there with the other.
        """
        self._check_epoch(terms)
        known = self.shown()
        if known is None:
            raise RuntimeError("prove first")
        self._audit.node_admitted(known.testimony, known.collateral, admitted=admitted)

    def _check_epoch(self, terms: WarrantTerms) -> None:
        self._table.check_epoch(
            terms.role, terms.party, Epoch(terms.epoch, key_digest(terms.tls_key))
        )


def _expiry(
    node: Node, terms: WarrantTerms, standing: Standing, *, at: datetime
) -> datetime:
    """Returns when an admission lapses: a whole second, as it is told and recorded.

    It outlives neither the warrant nor the evidence it rests on.

    Raises:
        VerificationError: If either is about to end. A warrant was checked some time
            ago; and an admission that is over when it is recorded would never verify.
    """
    bounds = [("the warrant", "warrant-expired", terms.expires_at)]
    if isinstance(standing, Verdict):
        # By its code no judgement of the client: this side may lack newer collateral.
        ends = int(standing.claims.not_after.timestamp())
        bounds.append(("what the evidence rests on", "collateral-expired", ends))
    for what, code, ends in bounds:
        if ends - at.timestamp() < LEAST_LIFE_SECONDS:
            raise VerificationError(
                f"{what} is about to end",
                code=code,
                expected=f"{LEAST_LIFE_SECONDS} s at least, from {at.timestamp():.0f}"
                " (Unix time)",
                got=f"an end at {ends}",
                remedy="Renew it, and enrol again.",
            )
    # In seconds first: a warrant may end outside any calendar.
    lapses = int(at.timestamp()) + node.plan.admission.life_seconds
    return datetime.fromtimestamp(min(lapses, *(it[2] for it in bounds)), UTC)


def _check_hello(hello: Hello, node: Node) -> None:
    # The plan before the run: a run's name can be guessed, and who asks is a stranger.
    for name, expected, got in (
        ("protocol version", str(VERSION), str(hello.version)),
        ("plan", node.plan_hash.hex(), hello.plan_hash.hex()),
        ("run", node.plan.run_id, hello.run_id),
    ):
        if expected != got:
            raise VerificationError(
                f"the client works under another {name}",
                code=f"{name.split()[-1]}-differs",
                expected=expected,
                got=got,
                remedy="All nodes need the very same plan file and version.",
            )
    # Without a list of all: whoever asks is a stranger, and there may be a thousand.
    if hello.role != "worker" or not any(
        party.name == hello.party and party.role == "worker"
        for party in node.plan.party
    ):
        raise VerificationError(
            "the client's party is not in the plan",
            code="party-unknown",
            expected="a worker of the plan",
            got=f"{hello.role} {hello.party}",
        )
    parse_spki(hello.tls_key)
