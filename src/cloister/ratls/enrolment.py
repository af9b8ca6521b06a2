"""Both sides of the mutual challenge, step by step, without any I/O.

Each side is an object that takes the peer's message and gives its own next one. The
numbers are those of `challenge.py` and of the design's seventh step of trust. A wrong
order of calls is a `RuntimeError`; a peer that is not what it must be, an error.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.errors import ProtocolError, VerificationError
from cloister.ratls.admission import AdmissionAuthority, AdmissionTable, AttestedPeer
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
    Nonce,
    ServerProof,
    Transcript,
)
from cloister.ratls.identity import Spki, parse_spki, spki_of
from cloister.ratls.node import Node
from cloister.ratls.warrant import WarrantTerms

# How long an admission lasts before the node must attest again.
ADMISSION_LIFE = timedelta(hours=12)


class ClientEnrolment:
    """The client's side: a worker, or anybody who wants to speak to the server."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._pinned: EvidenceCertificate | None = None
        self._transcript: Transcript | None = None
        self._server: AttestedPeer | None = None

    def pin(self, unverified_certificate: bytes) -> EvidenceCertificate:
        """(1) Verifies the server's certificate and pins it.

        Raises:
            VerificationError: If its form, evidence or appraisal fails.
        """
        at = self._node.clock()
        certificate = parse_certificate(unverified_certificate, at=at)
        self._node.appraise(
            certificate.unverified_quote,
            role="server",
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
            server_party=node.plan.server.name,
            client_nonce=self._nonce,
            server_nonce=Nonce(challenge.nonce),
            client_key=node.identity.tls_spki,
            server_key=self._pinned.spki,
            admission_key=Spki(challenge.admission_key),
            client_encryption_key=node.identity.encryption_public,
            server_encryption_key=challenge.encryption_key,
        )
        signature = node.identity.tls_key.sign(
            self._transcript.signed_bytes(), ec.ECDSA(hashes.SHA256())
        )
        return Answer(warrant=node.warrant, signature=signature)

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
        verdict = node.appraise(
            proof.quote,
            role="server",
            expected_report_data=transcript.server_report_data(),
        )
        self._server = AttestedPeer(
            role="server",
            party=transcript.server_party,
            epoch=terms.epoch,
            tls_key=transcript.server_key,
            encryption_key=transcript.server_encryption_key,
            verdict=verdict,
        )
        return ClientProof(quote=node.platform.quote(transcript.client_report_data()))

    def finish(self, admission: Admission) -> tuple[AttestedPeer, bytes]:
        """(7) Returns the attested server and this node's admission certificate (DER).

        Raises:
            ProtocolError: If the certificate is not for this node's key.
        """
        if self._server is None:
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
        return self._server, admission.certificate


class ServerEnrolment:
    """The server's side of one client's enrolment."""

    def __init__(
        self, node: Node, *, authority: AdmissionAuthority, table: AdmissionTable
    ) -> None:
        self._node = node
        self._authority = authority
        self._table = table
        self._transcript: Transcript | None = None
        self._terms: WarrantTerms | None = None

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
        """
        node, transcript = self._node, self._transcript
        if transcript is None:
            raise RuntimeError("challenge first")
        key = parse_spki(transcript.client_key)
        try:
            key.verify(
                answer.signature, transcript.signed_bytes(), ec.ECDSA(hashes.SHA256())
            )
        except InvalidSignature as error:
            raise VerificationError(
                f"{transcript.client_party!r} does not hold its TLS key",
                code="transcript-signature",
                expected="a signature over this transcript by the key in its hello",
            ) from error
        terms = node.check_warrant(
            answer.warrant,
            role=transcript.client_role,
            party=transcript.client_party,
            tls_key=transcript.client_key,
        )
        self._table.check_epoch(terms.role, terms.party, terms.epoch)
        self._terms = terms
        quote = node.platform.quote(transcript.server_report_data())
        return ServerProof(warrant=node.warrant, quote=quote)

    def admit(self, proof: ClientProof) -> tuple[AttestedPeer, Admission]:
        """(7) Verifies the client's evidence and admits its key.

        Raises:
            VerificationError: If the evidence fails; the table is unchanged then.
        """
        node, transcript, terms = self._node, self._transcript, self._terms
        if transcript is None or terms is None:
            raise RuntimeError("prove first")
        verdict = node.appraise(
            proof.quote,
            role=transcript.client_role,
            expected_report_data=transcript.client_report_data(),
        )
        peer = AttestedPeer(
            role=transcript.client_role,
            party=transcript.client_party,
            epoch=terms.epoch,
            tls_key=transcript.client_key,
            encryption_key=transcript.client_encryption_key,
            verdict=verdict,
        )
        at = node.clock()
        # An admission outlives neither the warrant nor the evidence it rests on.
        warranted = max(0.0, terms.expires_at - at.timestamp())
        life = min(ADMISSION_LIFE / timedelta(seconds=1), warranted)
        expires_at = min(at + timedelta(seconds=life), verdict.claims.not_after)
        certificate = self._authority.issue(peer, at=at, expires_at=expires_at)
        self._table.admit(peer, expires_at=expires_at)
        return peer, Admission(certificate=certificate)


def _check_hello(hello: Hello, node: Node) -> None:
    for name, expected, got in (
        ("protocol version", str(VERSION), str(hello.version)),
        ("run", node.plan.run_id, hello.run_id),
        ("plan", node.plan_hash.hex(), hello.plan_hash.hex()),
    ):
        if expected != got:
            raise VerificationError(
                f"the client works under another {name}",
                code=f"{name.split()[-1]}-differs",
                expected=expected,
                got=got,
                remedy="All nodes need the very same plan file and version.",
            )
    allowed = {(p.role, p.name) for p in node.plan.workers}
    if (hello.role, hello.party) not in allowed:
        raise VerificationError(
            "the client's party is not in the plan",
            code="party-unknown",
            expected=" or ".join(f"{role} {name}" for role, name in sorted(allowed)),
            got=f"{hello.role} {hello.party}",
        )
    parse_spki(hello.tls_key)


def _bad_admission(got: str) -> ProtocolError:
    return ProtocolError(
        "the server's admission cannot be used",
        code="admission-invalid",
        expected="a certificate for this node's key",
        got=got,
    )
