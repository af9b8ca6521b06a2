"""A node's session with its custodian in memory, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tests.support.custodians import Custodians
from tests.support.custody_keys import KeysInMemory
from tests.support.federation_in_memory import WARRANT_LIFE, Federation, HandClock

from cloister.attestation.policy import Policy
from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian, Release
from cloister.custody.key_store import KeyStore
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    KeyRequest,
    KeysReleased,
    Met,
    Possession,
    Warranted,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.custody.node_share_meeting import NodeShareMeeting
from cloister.custody.share_meeting import ShareMeeting
from cloister.plan.plan import Plan
from cloister.ratls.challenge import Answer, ClientProof, Hello
from cloister.ratls.identity import NodeIdentity, new_identity
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind, Secret

CERTIFICATE_LIFE = timedelta(days=365)


@contextmanager
def custodian_of(  # noqa: PLR0913 - whose, and each thing that a test changes
    federation: Federation,
    party: str,
    directory: Path,
    *,
    clock: HandClock | None = None,
    plan: Plan | None = None,
    local_policy: Policy | None = None,
    keys: KeyStore | None = None,
) -> Iterator[Custodian]:
    """Lends a party's custodian, which consented to the plan."""
    clock = clock or HandClock()
    custodians = Custodians(
        federation=federation,
        directory=directory,
        plan=plan or federation.plan,
        clock=clock,
    )
    with custodians.register(party) as register:
        yield Custodian(
            party=party,
            key=federation.keys[party],
            register=register,
            keys=keys or KeysInMemory(),
            appraiser=federation.appraiser(clock.floored()),
            local_policy=local_policy,
            warrant_life=WARRANT_LIFE,
        )


class CustodyMeeting:
    """A custodian and a node at their session; each step does those before it.

    Args:
        custodian: The custodian.
        node: The node; its warrant is renewed here.

    Attributes:
        custodian: The custodian's side.
        node: The node's side.
    """

    def __init__(self, custodian: Custodian, node: Node) -> None:
        self.office = custodian
        self.identity = new_identity()
        self.custodian = CustodianMeeting(custodian, tls_key=self.identity.tls_spki)
        self.node = NodeMeeting(node)

    def certificate(self) -> bytes:
        """(1) The custodian's certificate."""
        return certificate_of(self.office, self.identity)

    def hello(self) -> Hello:
        """(2) The node's hello, after it pinned the certificate."""
        self.node.pin(self.certificate())
        return self.node.hello()

    def challenge(self) -> CustodianChallenge:
        """(3) The custodian's challenge."""
        return self.custodian.challenge(self.hello())

    def possession(self) -> Possession:
        """(4) The node's signature."""
        return self.node.possess(self.challenge())

    def custodian_proof(self) -> CustodianProof:
        """(5) The custodian's signature."""
        return self.custodian.prove(self.possession())

    def node_proof(self) -> ClientProof:
        """(6) The node's proof."""
        return self.node.prove(self.custodian_proof())

    def warranted(self) -> Warranted:
        """(7) The node's warrant."""
        return self.custodian.warrant(self.node_proof())

    def accept(self) -> Mark | None:
        """What the node knows of the run in the end."""
        return self.node.accept(self.warranted())

    def deposit(self, mark: Mark) -> Deposited:
        """A deposit, after a session has come so far."""
        return self.custodian.deposit(Deposit(mark=mark))

    def release(self, *kinds: KeyKind) -> Release:
        """What the custodian releases, after a session has come so far."""
        return self.custodian.release(KeyRequest(kinds=kinds))

    def keys(self, *kinds: KeyKind) -> dict[KeyKind, Secret]:
        """The keys that the node has in the end."""
        released = self.custodian.release(self.node.request(kinds))
        return self.node.open(KeysReleased(sealed=released.sealed), kinds=kinds)


class SharesMeeting:
    """Another party's custodian and a node; each step does those before it.

    Args:
        custodian: The custodian.
        node: The node; it has a warrant.

    Attributes:
        custodian: The custodian's side.
        node: The node's side.
    """

    def __init__(self, custodian: Custodian, node: Node) -> None:
        self.office = custodian
        self.identity = new_identity()
        self.custodian = ShareMeeting(custodian, tls_key=self.identity.tls_spki)
        self.node = NodeShareMeeting(node, party=custodian.party)

    def hello(self) -> Hello:
        """(2) The node's hello, after it pinned the certificate."""
        self.node.pin(certificate_of(self.office, self.identity))
        return self.node.hello()

    def answer(self) -> Answer:
        """(4) The node's warrant and signature."""
        return self.node.answer(self.custodian.challenge(self.hello()))

    def custodian_proof(self) -> CustodianProof:
        """(5) The custodian's signature."""
        return self.custodian.prove(self.answer())

    def node_proof(self) -> ClientProof:
        """(6) The node's proof."""
        return self.node.prove(self.custodian_proof())

    def met(self) -> Met:
        """(7) The custodian accepted it."""
        return self.custodian.meet(self.node_proof())

    def accept(self) -> None:
        """What the node makes of it."""
        self.node.accept(self.met())

    def release(self, *kinds: KeyKind) -> Release:
        """What the custodian releases, after a session has come so far."""
        return self.custodian.release(KeyRequest(kinds=kinds))

    def share(self) -> Secret:
        """The share that the node has in the end."""
        released = self.custodian.release(self.node.request())
        return self.node.open(KeysReleased(sealed=released.sealed))


def certificate_of(custodian: Custodian, identity: NodeIdentity) -> bytes:
    """Returns a custodian's certificate for a TLS key."""
    return make_custodian_certificate(
        custodian.party,
        custodian.key,
        identity.tls_key,
        at=custodian.appraiser.clock(),
        life=CERTIFICATE_LIFE,
    )
