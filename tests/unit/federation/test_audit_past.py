from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import AuditedRun, lines_of, links_in, state_after

from cloister.errors import ProtocolError, StorageError, VerificationError
from cloister.federation.audit_past import Past, read_past
from cloister.federation.audit_records import CollateralUsed, NodeAdmitted
from cloister.plan.plan import plan_hash
from cloister.ratls.epochs import Epoch, key_digest
from cloister.storage.audit_chain import parse_links


@pytest.fixture(scope="module")
def story(
    federation: Federation, tmp_path_factory: pytest.TempPathFactory
) -> AuditedRun:
    """A run of two servers, to its end."""
    made = AuditedRun(federation, tmp_path_factory.mktemp("run") / "audit.jsonl")
    made.begin()
    made.admit_all()
    made.train(2)
    made.log.close()
    made.begin(epoch=2, completed=2)
    made.admit("alice", node=made.workers["alice"])
    made.admit("bob", epoch=2)
    made.train(3)
    made.seal()
    made.log.close()
    return made


def past_of(log: bytes) -> Past:
    return read_past(parse_links(io.BytesIO(log)), run_id="blobs/a")


def test_a_log_says_what_is_in_it(story: AuditedRun) -> None:
    content, links = story.path.read_bytes(), story.links()
    past = past_of(content)
    assert past.plan_hash == plan_hash(story.federation.plan)
    assert past.heads == tuple(link.head for link in links)
    assert past.collateral == {
        entry.sha256 for entry in story.entries() if isinstance(entry, CollateralUsed)
    }


def test_a_log_says_which_node_of_each_party_was_the_newest(story: AuditedRun) -> None:
    nodes = {("server", "aggregator"): story.server} | {
        ("worker", party): node for party, node in story.workers.items()
    }
    assert past_of(story.path.read_bytes()).newest == {
        who: Epoch(node.warrant.current.terms.epoch, key_digest(node.identity.tls_spki))
        for who, node in nodes.items()
    }
    # As it was then, where the log ends earlier.
    kinds = [type(entry) for entry in story.entries()]
    links = story.links()[: kinds.index(NodeAdmitted) + 1]
    newest = past_of(lines_of(*links)).newest
    assert {party: epoch.number for (_, party), epoch in newest.items()} == {
        "aggregator": 1,
        "alice": 1,
    }


def test_a_renewal_after_a_newer_node_came_changes_nothing(story: AuditedRun) -> None:
    """No honest server writes that; it must not bring the older node back."""
    before = AuditedRun(story.federation, story.path.with_name("older.jsonl"))
    before.begin()
    before.admit("alice")
    older = before.entries()[-1]
    before.admit("alice", epoch=5)
    before.lie(older)
    past = past_of(before.path.read_bytes())
    assert past.newest["worker", "alice"].number == 5


def test_an_admission_without_a_warrant_of_the_nodes_party_is_refused(
    story: AuditedRun,
) -> None:
    """A server of other code must not keep a party's nodes out for ever."""
    made = AuditedRun(story.federation, story.path.with_name("lies.jsonl"))
    made.begin()
    made.admit("alice")
    admitted = made.entries()[-1]
    assert isinstance(admitted, NodeAdmitted)
    testimony = admitted.testimony
    warrant = testimony.warrant
    assert warrant is not None
    lies = {
        "audit-foreign": (
            replace(testimony, warrant=None),
            replace(testimony, said=replace(testimony.said, client_key=b"k" * 91)),
            replace(testimony, said=replace(testimony.said, client_party="carol")),
        ),
        "warrant-signature": (
            replace(testimony, said=replace(testimony.said, client_party="bob")),
            replace(
                testimony,
                warrant=replace(
                    warrant, terms=replace(warrant.terms, epoch=warrant.terms.epoch + 7)
                ),
            ),
        ),
    }
    for code, testimonies in lies.items():
        for lie in testimonies:
            with pytest.raises(VerificationError) as caught:
                past_of(made.lied(replace(admitted, testimony=lie)))
            assert caught.value.code == code


def test_whoever_has_no_key_cannot_fill_the_memory(story: AuditedRun) -> None:
    made = AuditedRun(story.federation, story.path.with_name("many.jsonl"))
    made.server = story.federation.node("bob")
    more = [CollateralUsed(sha256=f"{it:064x}", text="{}") for it in range(3)]
    made.path.write_bytes(lines_of(*story.links()))
    content = made.lied(*more)
    assert (
        past_of(lines_of(*links_in(content)[:-1])).heads
        == past_of(story.path.read_bytes()).heads
    )
    with pytest.raises(VerificationError) as caught:
        past_of(content)
    assert caught.value.code == "audit-foreign"


def test_an_empty_log_is_nobodys() -> None:
    assert past_of(b"") == Past(
        plan_hash=None,
        collateral=frozenset(),
        heads=(),
        newest={},
        newest_at=None,
        completed=None,
        states={},
        sent={},
        sealed=False,
    )


def test_what_comes_before_a_servers_introduction_counts_with_it_alone(
    story: AuditedRun,
) -> None:
    links = story.links()
    for length in (1, 2):
        assert past_of(lines_of(*links[:length])).heads == ()
    assert len(past_of(lines_of(*links[:3])).heads) == 3


def test_a_cut_log_is_a_shorter_one(story: AuditedRun) -> None:
    links = story.links()
    for length in range(3, len(links)):
        past = past_of(lines_of(*links[:length]))
        assert past.heads == tuple(link.head for link in links[:length])


def test_any_flipped_bit_is_refused(story: AuditedRun) -> None:
    content = story.path.read_bytes()
    chosen = np.random.default_rng(7)
    for at, bit in zip(
        chosen.integers(len(content), size=300),
        chosen.integers(8, size=300),
        strict=True,
    ):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(bit)
        with pytest.raises((StorageError, VerificationError)):
            past_of(bytes(flipped))


def test_a_record_that_is_taken_out_swapped_or_doubled_is_refused(
    story: AuditedRun,
) -> None:
    links = story.links()
    for at in range(len(links) - 1):
        for changed in (
            [*links[:at], *links[at + 1 :]],
            [*links[:at], links[at + 1], links[at], *links[at + 2 :]],
            [*links[: at + 1], *links[at:]],
        ):
            with pytest.raises(StorageError):
                past_of(lines_of(*changed))


def test_a_server_that_was_replaced_writes_no_more(story: AuditedRun) -> None:
    before = AuditedRun(story.federation, Path(story.path.with_name("other.jsonl")))
    before.begin()
    former = before.server
    before.log.close()
    before.begin(epoch=2)
    before.log.close()
    before.server = former
    before.lie(story.entries()[-1])
    with pytest.raises(VerificationError) as caught:
        past_of(before.path.read_bytes())
    assert caught.value.code == "audit-foreign"
    assert len(links_in(before.path.read_bytes())) == 5


def test_a_log_says_which_states_and_rounds_the_run_goes_on_from(
    story: AuditedRun,
) -> None:
    """What a server lost and did again counts as it was done the last time."""
    made = AuditedRun(story.federation, story.path.with_name("lost.jsonl"))
    made.begin()
    made.admit_all()
    first = made.publish()
    made.complete(first)
    made.complete(made.publish())
    unstated = made.publish()
    made.log.round_completed(3, head=unstated.head, participants=(), state=None)
    past = past_of(made.path.read_bytes())
    assert (past.completed, past.states) == (3, states(0, 1, 2))
    assert set(past.sent) == {1, 2, 3}
    assert past.sent[3] == unstated.head.hex()
    made.log.close()

    made.begin(epoch=2, completed=1)
    past = past_of(made.path.read_bytes())
    assert (past.completed, past.states) == (1, states(0, 1))
    assert past.sent == {1: first.head.hex()}
    again = made.publish()
    made.log.round_completed(2, head=again.head, participants=(), state=None)
    past = past_of(made.path.read_bytes())
    assert (past.completed, past.states) == (2, states(0, 1))
    assert past.sent == {1: first.head.hex(), 2: again.head.hex()}
    made.log.run_failed(ProtocolError("no", code="no"), state=state_after(2))
    assert past_of(made.path.read_bytes()).states == states(0, 1, 2)
    made.log.close()


def states(*numbers: int) -> dict[int, str]:
    return {number: state_after(number).hex() for number in numbers}
