"""The node's side of a session with another party's custodian, without any I/O.

The node comes for that party's share of its state key. It believes nothing else that
is said there: neither a time nor a mark, and it gets no warrant.

The numbers are those of `messages.py`; a wrong order of calls is a `RuntimeError`.
"""

from __future__ import annotations

from typing import Final

from cloister.custody.certificate import CustodianCertificate
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    KeyRequest,
    KeysReleased,
    Met,
)
from cloister.custody.node_session import NodeSession
from cloister.custody.release_rules import keys_for
from cloister.ratls.challenge import Answer, ClientProof, Hello
from cloister.ratls.node import Node
from cloister.ratls.transcript import Transcript
from cloister.storage.keys import KeyKind, Secret

_SHARE: Final[tuple[KeyKind, ...]] = ("state-share",)


class NodeShareMeeting:
    """A node that asks another party's custodian for its share.

    Args:
        node: The node; it has a warrant.
        party: Whose custodian it is.

    Raises:
        VerificationError: If the plan names no share of that party for this node.
    """

    def __init__(self, node: Node, *, party: str) -> None:
        # Before anything is said: nobody else is shown this node's evidence.
        keys_for(
            node.plan,
            custodian_party=party,
            role=node.role,
            party=node.party,
            kinds=_SHARE,
        )
        self._session = NodeSession(node, custodian_party=party)
        self._epoch: int | None = None
        self._met = False

    @property
    def transcript(self) -> Transcript:
        """What both sides said, as this side heard it."""
        return self._session.transcript

    def pin(self, unverified_certificate: bytes) -> CustodianCertificate:
        """(1) Verifies that the certificate is of that party's custodian; pins it.

        Raises:
            VerificationError: If that party's key in the plan did not sign it.
        """
        return self._session.pin(unverified_certificate)

    def hello(self) -> Hello:
        """(2) Says who this node is."""
        return self._session.hello()

    def answer(self, challenge: CustodianChallenge) -> Answer:
        """(4) Signs the transcript with the TLS key, and shows the warrant.

        Raises:
            ProtocolError: If this node has none.
        """
        warrant = self._session.node.warrant.current
        self._epoch = warrant.terms.epoch
        return Answer(warrant=warrant, signature=self._session.sign(challenge))

    def prove(self, proof: CustodianProof) -> ClientProof:
        """(6) Verifies that the party's key answers now, then proves this node.

        Raises:
            VerificationError: If it does not; nothing was proved then.
        """
        return self._session.prove(proof)

    def accept(self, _met: Met) -> None:
        """(7) Hears that the custodian accepted this node."""
        self._session.check_proved()
        self._met = True

    def request(self) -> KeyRequest:
        """Asks for the share."""
        self._check_met()
        return self._session.request(_SHARE)

    def open(self, released: KeysReleased) -> Secret:
        """Returns the share, the one that the plan names.

        Raises:
            VerificationError: If it was not released to this node in this session, or
                is another.
        """
        epoch = self._check_met()
        keys = self._session.open(released, kinds=_SHARE, epoch=epoch)
        return keys["state-share"]

    def _check_met(self) -> int:
        if not self._met or self._epoch is None:
            raise RuntimeError("meet the custodian first")
        return self._epoch
