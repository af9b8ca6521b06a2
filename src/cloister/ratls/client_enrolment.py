"""The client's side of the mutual challenge, step by step, without any I/O.

It takes the server's message and gives its own next one. The numbers are those of
`challenge.py` and of the design's seventh step of trust. A wrong order of calls is a
`RuntimeError`; a server that is not what it must be, an error.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import ProtocolError
from cloister.ratls.admission_table import Peer
from cloister.ratls.certificate import (
    UNREADABLE,
    EvidenceCertificate,
    parse_certificate,
)
from cloister.ratls.challenge import (
    NONCE_BYTES,
    VERSION,
    Admission,
    Answer,
    Challenge,
    ClientProof,
    Hello,
    ServerProof,
)
from cloister.ratls.epochs import Epoch, key_digest
from cloister.ratls.identity import parse_spki, spki_of
from cloister.ratls.node import Node
from cloister.ratls.proofs import sign_possession
from cloister.ratls.transcript import Nonce, Transcript
from cloister.ratls.warrant import WarrantTerms, instant

_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admittance:
    """What a client has after its enrolment.

    Attributes:
        server: The attested server.
        certificate: This node's certificate for the training port, DER.
        expires_at: When the admission lapses, or what the server showed for itself,
            whichever is first.
        last_round: The last round it is good for.
    """

    server: Peer
    certificate: bytes
    expires_at: datetime
    last_round: int


class ClientEnrolment:
    """The client's side: a worker, or anybody who wants to speak to the server."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._pinned: EvidenceCertificate | None = None
        self._transcript: Transcript | None = None
        self._server: Peer | None = None
        self._terms: WarrantTerms | None = None
        self._evidence_until = _LATEST

    def pin(self, unverified_certificate: bytes) -> EvidenceCertificate:
        """(1) Verifies the server's certificate and pins it.

        Raises:
            VerificationError: If its form, evidence or appraisal fails.
        """
        at = self._node.clock()
        certificate = parse_certificate(unverified_certificate, at=at)
        self._node.appraise(
            certificate.unverified_quote,
            party=self._node.plan.server.name,
            expected_report_data=certificate.expected_report_data,
        )
        self._pinned = certificate
        return certificate

    def hello(self) -> Hello:
        """(2) Says who this node is."""
        node = self._node
        return Hello(
            version=VERSION,
            role=node.role,
            party=node.party,
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            nonce=self._nonce,
            tls_key=node.identity.tls_spki,
            encryption_key=node.identity.encryption_public,
        )

    def answer(self, challenge: Challenge) -> Answer:
        """(4) Signs the transcript with the TLS key and shows the warrant.

        Raises:
            VerificationError: If the server's admission key is not acceptable.
        """
        node = self._node
        if self._pinned is None:
            raise RuntimeError("pin the server's certificate first")
        parse_spki(challenge.admission_key)
        self._transcript = Transcript(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            client_role=node.role,
            client_party=node.party,
            server_role="server",
            server_party=node.plan.server.name,
            client_nonce=self._nonce,
            server_nonce=Nonce(challenge.nonce),
            client_key=node.identity.tls_spki,
            server_key=self._pinned.spki,
            admission_key=challenge.admission_key,
            client_encryption_key=node.identity.encryption_public,
            server_encryption_key=challenge.encryption_key,
        )
        signature = sign_possession(node.identity, self._transcript)
        return Answer(warrant=node.warrant.current, signature=signature)

    def prove(self, proof: ServerProof) -> ClientProof:
        """(6) Verifies the server's warrant and evidence, then gives its own.

        Raises:
            VerificationError: If the server fails; no evidence was made then.
        """
        node, transcript = self._node, self._transcript
        if transcript is None:
            raise RuntimeError("answer the challenge first")
        terms = node.check_warrant(
            proof.warrant,
            role="server",
            party=transcript.server_party,
            tls_key=transcript.server_key,
        )
        epoch = Epoch(terms.epoch, key_digest(transcript.server_key))
        node.epochs.check("server", transcript.server_party, epoch)
        verdict = node.appraise(
            proof.quote,
            party=transcript.server_party,
            expected_report_data=transcript.server_report_data(),
        )
        # Only what is genuine is remembered: a forger must not age the real server.
        node.epochs.note("server", transcript.server_party, epoch)
        self._terms, self._evidence_until = terms, verdict.claims.not_after
        self._server = Peer(
            role="server",
            party=transcript.server_party,
            epoch=terms.epoch,
            tls_key=transcript.server_key,
            encryption_key=transcript.server_encryption_key,
            standing=verdict,
        )
        return node.prover.prove(transcript)

    def finish(self, admission: Admission) -> Admittance:
        """(7) Returns the attested server and what it admits this node to.

        That lasts no longer than the server's own warrant and evidence: when they end,
        the server has to show newer ones.

        Raises:
            ProtocolError: If the certificate is not for this node's key.
        """
        if self._server is None or self._terms is None:
            raise RuntimeError("prove first")
        try:
            key = x509.load_der_x509_certificate(admission.certificate).public_key()
        except UNREADABLE as error:
            raise _bad_admission("bytes that are no certificate") from error
        if (
            not isinstance(key, ec.EllipticCurvePublicKey)
            or spki_of(key) != self._node.identity.tls_spki
        ):
            raise _bad_admission("a certificate for another key")
        expires_at = instant(admission.expires_at)
        # In seconds first: a warrant may end outside any calendar.
        if self._terms.expires_at < admission.expires_at:
            expires_at = instant(self._terms.expires_at)
        return Admittance(
            server=self._server,
            certificate=admission.certificate,
            expires_at=min(expires_at, self._evidence_until),
            last_round=admission.last_round,
        )


def _bad_admission(got: str) -> ProtocolError:
    return ProtocolError(
        "the server's admission cannot be used",
        code="admission-invalid",
        expected="a certificate for this node's key",
        got=got,
    )
