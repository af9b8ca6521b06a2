"""The node's side of a session with its own party's custodian, without any I/O.

The numbers are those of `messages.py`. A wrong order of calls is a `RuntimeError`; a
custodian that is not the party's own, an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from cloister.custody.certificate import CustodianCertificate
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeyRequest,
    KeysReleased,
    Possession,
    Warranted,
)
from cloister.custody.node_session import NodeSession
from cloister.ratls.challenge import ClientProof, Hello
from cloister.ratls.epochs import Epoch
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import instant
from cloister.storage.keys import KeyKind, Secret


class NodeMeeting:
    """A node that asks its party's custodian for a warrant, and for its keys.

    Args:
        node: The node.
    """

    def __init__(self, node: Node) -> None:
        self._session = NodeSession(node, custodian_party=node.party)
        self._epoch: int | None = None

    @property
    def transcript(self) -> Transcript:
        """What both sides said, as this side heard it."""
        return self._session.transcript

    def pin(self, unverified_certificate: bytes) -> CustodianCertificate:
        """(1) Verifies that the certificate is of the party's custodian; pins it.

        Raises:
            VerificationError: If the party's key in the plan did not sign it.
        """
        return self._session.pin(unverified_certificate)

    def hello(self) -> Hello:
        """(2) Says who this node is."""
        return self._session.hello()

    def possess(self, challenge: CustodianChallenge) -> Possession:
        """(4) Signs the transcript with the TLS key."""
        return Possession(signature=self._session.sign(challenge))

    def prove(self, proof: CustodianProof) -> ClientProof:
        """(6) Verifies that the party's key answers now, then proves this node.

        Raises:
            VerificationError: If it does not; nothing was proved then.
        """
        return self._session.prove(proof)

    def accept(self, warranted: Warranted) -> Mark | None:
        """(7) Holds the warrant from now on; returns how far the party knows the run.

        The custodian's time is a floor for this node's from now on, and the newest
        server it knows is the oldest this node will meet.

        Raises:
            VerificationError: If the warrant is not for this node.
        """
        self._session.check_proved()
        node, mark = self._session.node, warranted.mark
        # First, for a host's clock that is behind would refuse a good warrant. Whoever
        # answered step 5 on this connection is the custodian.
        node.clock.trust_custodian(instant(warranted.warrant.terms.issued_at))
        terms = node.check_warrant(
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
        self._epoch = terms.epoch
        return mark

    def request(self, kinds: Sequence[KeyKind]) -> KeyRequest:
        """Asks for keys of these kinds, which the plan must give to this node.

        Raises:
            ProtocolError: If nothing is asked for, or one kind twice.
            VerificationError: If the plan gives it none of a kind here.
        """
        if self._epoch is None:
            raise RuntimeError("accept a warrant first")
        return self._session.request(kinds)

    def open(
        self, released: KeysReleased, *, kinds: Sequence[KeyKind]
    ) -> dict[KeyKind, Secret]:
        """Returns the keys that were asked for, each the one that the plan names.

        Raises:
            VerificationError: If they were not released to this node in this session,
                or are others.
        """
        if self._epoch is None:
            raise RuntimeError("accept a warrant first")
        return self._session.open(released, kinds=kinds, epoch=self._epoch)
