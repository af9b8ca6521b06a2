"""Genuine evidence of what the plan does not want, and evidence of elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.federation_in_memory import Federation, quoting
from tests.support.hostile_platforms import DebugPlatform
from tests.support.meeting import Meeting, transcript_of
from tests.support.plan_tree import measurement_of
from tests.support.refusals import code_of

from cloister.errors import AppraisalError
from cloister.ratls.challenge import Answer
from cloister.ratls.node import Node
from cloister.ratls.proofs import sign_possession


def test_a_worker_that_runs_other_code_is_refused(
    federation: Federation, server: Node
) -> None:
    other = measurement_of("worker", task_source=b"# the task of the tests!\n")
    meeting = Meeting(server, federation.node("bob", measurement=other))
    assert code_of(meeting.admit) == "appraisal-measurement"
    assert meeting.table.parties() == ()


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_a_debug_environment_is_refused(
    federation: Federation, server: Node, party: str
) -> None:
    node = federation.node(party)
    debug = quoting(node, DebugPlatform(federation.platform(party)))
    meeting = Meeting(server, debug)
    with pytest.raises(AppraisalError) as caught:
        meeting.admit()
    assert caught.value.code == "appraisal-debug"
    assert meeting.table.parties() == ()


def test_a_server_in_debug_mode_is_not_pinned(
    federation: Federation, server: Node, alice: Node
) -> None:
    debug = quoting(server, DebugPlatform(federation.platform("aggregator")))
    assert code_of(Meeting(debug, alice).hello) == "appraisal-debug"


def test_nodes_of_another_deployment_are_refused_in_both_directions(
    other_federation: Federation, server: Node, alice: Node
) -> None:
    """Both work under the very same plan; only the platform's root is another."""
    stranger = quoting(alice, other_federation.platform("alice"))
    meeting = Meeting(server, stranger)
    assert code_of(meeting.admit) == "root-untrusted"
    assert meeting.table.parties() == ()
    fake = quoting(server, other_federation.platform("aggregator"))
    assert code_of(Meeting(fake, alice).hello) == "root-untrusted"


def test_a_root_that_the_plan_does_not_name_is_refused_even_if_configured(
    other_federation: Federation, server: Node, alice: Node
) -> None:
    """A host swaps the trust root's file; the plan's policy names the right one."""
    misled = replace(server, appraiser=other_federation.appraiser(server.clock))
    foreign = quoting(alice, other_federation.platform("alice"))
    meeting = Meeting(misled, foreign)
    # The client pins nothing: it is in league with the host.
    meeting.server.challenge(meeting.client.hello())
    transcript = transcript_of(meeting.server)
    signature = sign_possession(foreign.identity, transcript)
    meeting.server.prove(Answer(warrant=foreign.warrant.current, signature=signature))
    proof = foreign.prover.prove(transcript)
    assert code_of(lambda: meeting.server.admit(proof)) == "appraisal-root"
