"""The node's side of a session with its custodian, step by step, without any I/O.

The numbers are those of `messages.py`. A wrong order of calls is a `RuntimeError`; a
custodian that is not the party's own, an error.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidSignature

from cloister.custody.certificate import (
    CustodianCertificate,
    verify_custodian_certificate,
)
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Possession,
    Warranted,
)
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.ratls.challenge import NONCE_BYTES, VERSION, ClientProof, Hello
from cloister.ratls.epochs import Epoch
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.proofs import sign_possession
from cloister.ratls.transcript import Nonce, Transcript
from cloister.ratls.warrant import instant


class NodeMeeting:
    """A node that asks its party's custodian for a warrant.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._party_key = parse_party_key(node.plan.find_party(node.party).key)
        self._nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._pinned: CustodianCertificate | None = None
        self._transcript: Transcript | None = None
        self._proved = False

    def pin(self, unverified_certificate: bytes) -> CustodianCertificate:
        """(1) Verifies that the certificate is of the party's custodian; pins it.

        Raises:
            VerificationError: If the party's key in the plan did not sign it.
        """
        self._pinned = verify_custodian_certificate(
            unverified_certificate,
            party=self._node.party,
            party_key=self._party_key,
            at=self._node.clock(),
        )
        return self._pinned

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

    def possess(self, challenge: CustodianChallenge) -> Possession:
        """(4) Signs the transcript with the TLS key."""
        node = self._node
        if self._pinned is None:
            raise RuntimeError("pin the custodian's certificate first")
        self._transcript = Transcript(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            client_role=node.role,
            client_party=node.party,
            server_role="custodian",
            server_party=node.party,
            client_nonce=self._nonce,
            server_nonce=Nonce(challenge.nonce),
            client_key=node.identity.tls_spki,
            server_key=self._pinned.spki,
            admission_key=b"",
            client_encryption_key=node.identity.encryption_public,
            server_encryption_key=b"",
        )
        return Possession(signature=sign_possession(node.identity, self._transcript))

    def prove(self, proof: CustodianProof) -> ClientProof:
        """(6) Verifies that the party's key answers now, then proves this node.

        Raises:
            VerificationError: If it does not; nothing was proved then.
        """
        if self._transcript is None:
            raise RuntimeError("possess first")
        try:
            self._party_key.verify(proof.signature, self._transcript.custodian_bytes())
        except InvalidSignature as error:
            raise VerificationError(
                f"who answers is not the custodian of {self._node.party!r}",
                code="custodian-signature",
                expected="a signature over this transcript by the party's key",
                got="another one",
            ) from error
        self._proved = True
        return self._node.prover.prove(self._transcript)

    def accept(self, warranted: Warranted) -> Mark | None:
        """(7) Holds the warrant from now on; returns how far the party knows the run.

        The custodian's time is a floor for this node's from now on, and the newest
        server it knows is the oldest this node will meet.

        Raises:
            VerificationError: If the warrant is not for this node.
        """
        if not self._proved:
            raise RuntimeError("prove first")
        node, mark = self._node, warranted.mark
        # First, for a host's clock that is behind would refuse a good warrant. Whoever
        # answered step 5 on this connection is the custodian.
        node.clock.trust_custodian(instant(warranted.warrant.terms.issued_at))
        node.check_warrant(
            warranted.warrant,
            role=node.role,
            party=node.party,
            tls_key=node.identity.tls_spki,
        )
        if mark is not None and node.role == "worker":
            node.epochs.learn(
                "server",
                node.plan.server.name,
                Epoch(mark.server_epoch, mark.server_key),
            )
        node.warrant.renew(warranted.warrant)
        return mark
