"""A node's session with its custodian in memory, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tests.support.custodians import Custodians
from tests.support.federation_in_memory import WARRANT_LIFE, Federation, HandClock

from cloister.attestation.policy import Policy
from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.meeting import CustodianMeeting
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Deposit,
    Deposited,
    Possession,
    Warranted,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.plan.plan import Plan
from cloister.ratls.challenge import ClientProof, Hello
from cloister.ratls.identity import new_identity
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

CERTIFICATE_LIFE = timedelta(days=365)


@contextmanager
def custodian_of(
    federation: Federation,
    party: str,
    directory: Path,
    *,
    clock: HandClock | None = None,
    plan: Plan | None = None,
    local_policy: Policy | None = None,
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
        return make_custodian_certificate(
            self.office.party,
            self.office.key,
            self.identity.tls_key,
            at=self.office.appraiser.clock(),
            life=CERTIFICATE_LIFE,
        )

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
