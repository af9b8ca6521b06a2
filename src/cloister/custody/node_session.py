"""The node's side of any session with a custodian: what is the same whoever's it is.

No I/O. The numbers are those of `messages.py`; a wrong order of calls is a
`RuntimeError`. `node_meeting.py` has what a node says to its own party's custodian, and
`node_share_meeting.py` what it says to another's.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature

from cloister.custody.certificate import (
    CustodianCertificate,
    verify_custodian_certificate,
)
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeyRequest,
    KeysReleased,
)
from cloister.custody.release_rules import keys_for
from cloister.custody.released_keys import check_key, open_keys
from cloister.errors import VerificationError
from cloister.plan.keys import parse_party_key
from cloister.ratls.challenge import NONCE_BYTES, VERSION, ClientProof, Hello
from cloister.ratls.node import Node
from cloister.ratls.proofs import sign_possession
from cloister.ratls.transcript import Nonce, Transcript
from cloister.storage.keys import KeyKind, Secret


class NodeSession:
    """A node that meets one custodian.

    Args:
        node: The node.
        custodian_party: Whose custodian it is to be.
    """

    def __init__(self, node: Node, *, custodian_party: str) -> None:
        self._node = node
        self._custodian_party = custodian_party
        self._party_key = parse_party_key(node.plan.find_party(custodian_party).key)
        self._nonce = Nonce(secrets.token_bytes(NONCE_BYTES))
        self._pinned: CustodianCertificate | None = None
        self._transcript: Transcript | None = None
        self._proved = False

    @property
    def node(self) -> Node:
        """The node."""
        return self._node

    @property
    def transcript(self) -> Transcript:
        """What both sides said, as this side heard it."""
        if self._transcript is None:
            raise RuntimeError("answer the custodian's challenge first")
        return self._transcript

    def pin(self, unverified_certificate: bytes) -> CustodianCertificate:
        """(1) Verifies that the certificate is of the party's custodian; pins it.

        Raises:
            VerificationError: If the party's key in the plan did not sign it.
        """
        self._pinned = verify_custodian_certificate(
            unverified_certificate,
            party=self._custodian_party,
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

    def sign(self, challenge: CustodianChallenge) -> bytes:
        """(4) Returns the TLS key's signature over the transcript."""
        node = self._node
        if self._pinned is None:
            raise RuntimeError("pin the custodian's certificate first")
        self._transcript = Transcript(
            run_id=node.plan.run_id,
            plan_hash=node.plan_hash,
            client_role=node.role,
            client_party=node.party,
            server_role="custodian",
            server_party=self._custodian_party,
            client_nonce=self._nonce,
            server_nonce=Nonce(challenge.nonce),
            client_key=node.identity.tls_spki,
            server_key=self._pinned.spki,
            admission_key=b"",
            client_encryption_key=node.identity.encryption_public,
            server_encryption_key=b"",
        )
        return sign_possession(node.identity, self._transcript)

    def prove(self, proof: CustodianProof) -> ClientProof:
        """(6) Verifies that the party's key answers now, then proves this node.

        Raises:
            VerificationError: If it does not; nothing was proved then.
        """
        transcript = self.transcript
        try:
            self._party_key.verify(proof.signature, transcript.custodian_bytes())
        except InvalidSignature as error:
            raise VerificationError(
                f"who answers is not the custodian of {self._custodian_party!r}",
                code="custodian-signature",
                expected="a signature over this transcript by the party's key",
                got="another one",
            ) from error
        self._proved = True
        return self._node.prover.prove(transcript)

    def check_proved(self) -> None:
        """Checks that the custodian proved itself, and this node to it."""
        if not self._proved:
            raise RuntimeError("prove first")

    def request(self, kinds: Sequence[KeyKind]) -> KeyRequest:
        """Asks for keys that the plan gives to this node, and for no others.

        Raises:
            ProtocolError: If nothing is asked for, or one kind twice.
            VerificationError: If the plan gives it none of a kind here.
        """
        self.check_proved()
        self._names(kinds)
        return KeyRequest(kinds=tuple(kinds))

    def open(
        self, released: KeysReleased, *, kinds: Sequence[KeyKind], epoch: int
    ) -> dict[KeyKind, Secret]:
        """Returns the keys that were asked for, each the one that the plan names.

        Args:
            released: What the custodian sent.
            kinds: What was asked for.
            epoch: The epoch of the warrant that counts in this session.

        Raises:
            VerificationError: If it was released to another node or in another session
                (``released-keys``), or is another key than the plan names
                (``key-differs``).
        """
        self.check_proved()
        names = self._names(kinds)
        keys = open_keys(
            released.sealed,
            identity=self._node.identity,
            transcript=self.transcript,
            epoch=epoch,
        )
        if keys.keys() != names.keys():
            raise VerificationError(
                f"the custodian of {self._custodian_party!r} gave other kinds of keys",
                code="released-keys",
                expected=", ".join(names),
                got=", ".join(keys) or "none",
            )
        return {
            kind: check_key(
                kind, keys[kind], name=name, custodian=self._custodian_party
            )
            for kind, name in names.items()
        }

    def _names(self, kinds: Sequence[KeyKind]) -> dict[KeyKind, str]:
        return keys_for(
            self._node.plan,
            custodian_party=self._custodian_party,
            role=self._node.role,
            party=self._node.party,
            kinds=kinds,
        )
