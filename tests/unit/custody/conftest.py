from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.custody_meeting import CustodyMeeting, custodian_of
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.plan_tree import by_identity

from cloister.custody.custodian import Custodian
from cloister.ratls.node import Node


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A federation whose bob is admitted by his key alone."""
    return make_federation(
        tmp_path_factory.mktemp("mixed"), change=lambda tree: by_identity(tree, "bob")
    )


@pytest.fixture
def custodian(
    federation: Federation, clock: HandClock, tmp_path: Path
) -> Iterator[Custodian]:
    """Alice's custodian; it has consented to the plan."""
    with custodian_of(federation, "alice", tmp_path, clock=clock) as custodian:
        yield custodian


@pytest.fixture
def custody(custodian: Custodian, alice: Node) -> CustodyMeeting:
    """Alice's node at its first session."""
    return CustodyMeeting(custodian, alice)
