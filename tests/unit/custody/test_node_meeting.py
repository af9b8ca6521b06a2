from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.custody_meeting import CustodyMeeting, custodian_of
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    quoting,
    warranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting
from tests.support.refusals import code_of
from tests.support.registers import shown_by

from cloister.custody.certificate import make_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.messages import (
    CustodianChallenge,
    CustodianProof,
    Warranted,
)
from cloister.custody.node_meeting import NodeMeeting
from cloister.errors import ConfigError, ProtocolError
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import VERSION, EvidenceProof
from cloister.ratls.epochs import Epoch, key_digest
from cloister.ratls.identity import new_identity
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.transcript import Transcript
from cloister.ratls.warrant import HeldWarrant, Warrant, WarrantTerms, sign_warrant

DAY = timedelta(days=1)
MARK = Mark(round=3, state=b"s" * 32, server_epoch=4, server_key=b"k" * 32)


@pytest.fixture
def alice(federation: Federation, clock: HandClock) -> Node:
    """Alice's node before anybody warranted it."""
    return replace(federation.node("alice", clock=clock), warrant=HeldWarrant())


def said(custody: CustodyMeeting) -> Transcript:
    """Returns what the node believes was said."""
    return custody.node.transcript


def telling(warrant: Warrant, mark: Mark | None = None) -> Warranted:
    """Returns a custodian's last message."""
    return Warranted(
        warrant=warrant, mark=mark, mark_plan=None if mark is None else b"p" * 32
    )


def test_a_node_ends_with_a_warrant_that_its_server_accepts(
    custody: CustodyMeeting, alice: Node, server: Node
) -> None:
    assert custody.accept() is None
    held = alice.warrant.current
    assert held.terms.tls_key == alice.identity.tls_spki
    peer, _ = Meeting(server, alice).admit()
    assert (peer.party, peer.epoch) == ("alice", 1)


def test_a_node_says_who_it_is(custody: CustodyMeeting, alice: Node) -> None:
    hello = custody.node.hello()
    assert (hello.version, hello.role, hello.party) == (VERSION, "worker", "alice")
    assert (hello.run_id, hello.plan_hash) == (alice.plan.run_id, alice.plan_hash)
    assert hello.tls_key == alice.identity.tls_spki
    assert hello.nonce != NodeMeeting(alice).hello().nonce


def test_a_certificate_of_another_partys_custodian_is_not_pinned(
    federation: Federation, alice: Node, tmp_path: Path
) -> None:
    with custodian_of(federation, "bob", tmp_path) as bobs:
        posing = CustodyMeeting(bobs, alice)
        assert code_of(posing.hello) == "custodian-certificate-signature"


@pytest.mark.parametrize("signer", ["bob", "aggregator", None])
def test_a_certificate_that_another_key_signed_is_not_pinned(
    federation: Federation, custody: CustodyMeeting, signer: str | None
) -> None:
    key = federation.keys[signer] if signer else Ed25519PrivateKey.generate()
    der = make_custodian_certificate(
        "alice", key, new_identity().tls_key, at=START, life=DAY
    )
    assert code_of(custody.node.pin, der) == "custodian-certificate-signature"


def test_a_servers_certificate_is_no_custodians(
    custody: CustodyMeeting, server: Node
) -> None:
    der = make_certificate(server.identity, server.platform, at=START, life=DAY)
    assert code_of(custody.node.pin, der) == "custodian-certificate-signature"


def test_an_expired_certificate_is_not_pinned(
    custody: CustodyMeeting, clock: HandClock
) -> None:
    der = custody.certificate()
    clock.forward(400 * DAY)
    assert code_of(custody.node.pin, der) == "custodian-certificate-expired"


def counted(custody: CustodyMeeting) -> CountingPlatform:
    """Has the node count its quotes from now on."""
    counting = CountingPlatform(custody.node._session._node.platform)
    custody.node._session._node = quoting(custody.node._session._node, counting)
    return counting


LIES: dict[str, Callable[[Transcript], Transcript]] = {
    "another nonce": lambda t: replace(t, server_nonce=t.client_nonce),
    "another node's key": lambda t: replace(t, client_key=t.server_key),
    "another custodian's key": lambda t: replace(t, server_key=t.client_key),
    "another plan": lambda t: replace(t, plan_hash=b"p" * 32),  # type: ignore[arg-type]
    "another run": lambda t: replace(t, run_id="blobs/b"),
    "another party": lambda t: replace(t, client_party="bob", server_party="bob"),
    "a server": lambda t: replace(t, server_role="server"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_custodian_that_signs_another_transcript_gets_no_evidence(
    custody: CustodyMeeting, custodian: Custodian, lie: str
) -> None:
    custody.custodian_proof()
    quotes = counted(custody)
    other = LIES[lie](said(custody))
    proof = CustodianProof(signature=custodian.key.sign(other.custodian_bytes()))
    assert code_of(custody.node.prove, proof) == "custodian-signature"
    assert quotes.quotes == 0


def test_another_key_over_the_right_transcript_gets_no_evidence(
    custody: CustodyMeeting, federation: Federation
) -> None:
    """The certificate was stolen together with its key, but not the party's key."""
    custody.custodian_proof()
    quotes = counted(custody)
    for key in (federation.keys["bob"], Ed25519PrivateKey.generate()):
        proof = CustodianProof(signature=key.sign(said(custody).custodian_bytes()))
        assert code_of(custody.node.prove, proof) == "custodian-signature"
    assert quotes.quotes == 0


def test_the_partys_own_signatures_of_other_kinds_make_no_custodian(
    mixed: Federation, tmp_path: Path
) -> None:
    """A node by identity signs with the same key: its signature comes back to it."""
    bob = mixed.node("bob")
    with custodian_of(mixed, "bob", tmp_path) as custodian:
        custody = CustodyMeeting(custodian, bob)
        custody.possession()
        transcript = said(custody)
        key = mixed.keys["bob"]
        for signed in (
            transcript.identity_bytes(),
            transcript.possession_bytes(),
            bob.warrant.current.terms.signed_bytes(),
        ):
            reflected = CustodianProof(signature=key.sign(signed))
            assert code_of(custody.node.prove, reflected) == "custodian-signature"


def test_every_flipped_bit_of_a_custodians_signature_is_refused(
    custody: CustodyMeeting,
) -> None:
    good = custody.custodian_proof().signature
    for bit in range(8 * 64):
        signature = bytearray(good)
        signature[bit // 8] ^= 1 << bit % 8
        proof = CustodianProof(signature=bytes(signature))
        assert code_of(custody.node.prove, proof) == "custodian-signature"


def test_a_challenge_that_was_exchanged_on_the_way_ends_the_session(
    custody: CustodyMeeting,
) -> None:
    custody.challenge()
    possession = custody.node.possess(CustodianChallenge(nonce=bytes(32)))
    assert code_of(custody.custodian.prove, possession) == "transcript-signature"


def test_a_custodian_behind_a_relay_is_noticed_by_the_key_that_was_pinned(
    custodian: Custodian, alice: Node
) -> None:
    """Two custodians of one party; a host puts one in the other's place midway."""
    first, second = (CustodyMeeting(custodian, alice) for _ in range(2))
    hello = first.hello()
    possession = first.node.possess(second.custodian.challenge(hello))
    assert code_of(second.custodian.prove, possession) == "transcript-signature"


FOREIGN: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": bytes(32),
    "role": "server",
    "party": "bob",
    "tls_key": new_identity().tls_spki,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_warrant_for_something_else_is_not_held(
    custody: CustodyMeeting, custodian: Custodian, alice: Node, name: str
) -> None:
    terms: WarrantTerms = msgspec.structs.replace(
        custody.warranted().warrant.terms, **{name: FOREIGN[name]}
    )
    bad = telling(sign_warrant(terms, custodian.key), MARK)
    assert code_of(custody.node.accept, bad) == "warrant-foreign"
    with pytest.raises(ProtocolError, match="no warrant"):
        _ = alice.warrant.current
    # Nor is anything believed that came with it.
    alice.epochs.check("server", "aggregator", Epoch(1, bytes(32)))


def test_a_warrant_that_another_key_signed_is_not_held(
    custody: CustodyMeeting, federation: Federation, alice: Node
) -> None:
    terms = custody.warranted().warrant.terms
    bad = telling(sign_warrant(terms, federation.keys["bob"]))
    assert code_of(custody.node.accept, bad) == "warrant-signature"
    with pytest.raises(ProtocolError, match="no warrant"):
        _ = alice.warrant.current


def test_a_warrant_that_is_over_is_not_held(
    custody: CustodyMeeting, custodian: Custodian
) -> None:
    terms = custody.warranted().warrant.terms
    over = msgspec.structs.replace(terms, expires_at=terms.issued_at)
    bad = telling(sign_warrant(over, custodian.key))
    assert code_of(custody.node.accept, bad) == "warrant-malformed"
    over = msgspec.structs.replace(
        terms, issued_at=terms.issued_at - 9, expires_at=terms.issued_at
    )
    # Refused by time too: what the node heard of its custodian's clock is the floor.
    bad = telling(sign_warrant(over, custodian.key))
    assert code_of(custody.node.accept, bad) == "warrant-expired"


def test_a_warrant_from_outside_any_calendar_is_not_held(
    custody: CustodyMeeting, custodian: Custodian, alice: Node
) -> None:
    terms = custody.warranted().warrant.terms
    never = msgspec.structs.replace(terms, issued_at=2**53)
    bad = telling(sign_warrant(never, custodian.key))
    with pytest.raises(ProtocolError) as caught:
        custody.node.accept(bad)
    assert caught.value.code == "time-invalid"
    assert alice.clock() == START


def test_a_failed_renewal_leaves_the_warrant_that_is_held(
    custodian: Custodian, alice: Node, federation: Federation
) -> None:
    CustodyMeeting(custodian, alice).accept()
    held = alice.warrant.current
    custody = CustodyMeeting(custodian, alice)
    terms = custody.warranted().warrant.terms
    bad = telling(sign_warrant(terms, federation.keys["bob"]))
    assert code_of(custody.node.accept, bad) == "warrant-signature"
    assert alice.warrant.current is held


def test_a_worker_meets_no_server_older_than_the_one_its_party_knows(
    federation: Federation,
    custody: CustodyMeeting,
    alice: Node,
    clock: HandClock,
) -> None:
    warrant = custody.warranted().warrant
    newest = federation.node("aggregator", clock=clock, epoch=4)
    mark = msgspec.structs.replace(
        MARK, server_key=key_digest(newest.identity.tls_spki)
    )
    assert custody.node.accept(telling(warrant, mark)) == mark
    older = federation.node("aggregator", clock=clock, epoch=3)
    assert code_of(Meeting(older, alice).client_proof) == "epoch-old"
    twin = federation.node("aggregator", clock=clock, epoch=4)
    assert code_of(Meeting(twin, alice).client_proof) == "epoch-forked"
    Meeting(newest, alice).finish()


def test_a_mark_that_is_older_than_what_the_worker_met_is_no_contradiction(
    federation: Federation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    """The server was started anew, and nothing was deposited since."""
    custody = CustodyMeeting(custodian, alice)
    custody.accept()
    newer = federation.node("aggregator", clock=clock, epoch=5)
    Meeting(newer, alice).finish()
    custody.deposit(MARK)
    assert CustodyMeeting(custodian, alice).accept() == MARK
    Meeting(newer, alice).finish()
    older = federation.node("aggregator", clock=clock, epoch=4)
    assert code_of(Meeting(older, alice).client_proof) == "epoch-old"


def test_a_mark_of_another_server_with_the_same_epoch_shows_the_fork(
    federation: Federation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    custody = CustodyMeeting(custodian, alice)
    custody.accept()
    custody.deposit(MARK)
    forked = federation.node("aggregator", clock=clock, epoch=MARK.server_epoch)
    blind = federation.node("alice", clock=clock)
    Meeting(forked, blind).finish()
    again = CustodyMeeting(custodian, blind)
    assert code_of(again.accept) == "epoch-forked"


def test_a_server_makes_nothing_of_its_own_mark(
    federation: Federation, server: Node, tmp_path: Path
) -> None:
    """It names the server that ran before; this one has the next epoch."""
    with custodian_of(federation, "aggregator", tmp_path) as custodian:
        former = federation.node("aggregator")
        first = CustodyMeeting(custodian, former)
        first.accept()
        key = key_digest(former.identity.tls_spki)
        mark = msgspec.structs.replace(MARK, server_epoch=1, server_key=key)
        first.deposit(mark)
        assert CustodyMeeting(custodian, server).accept() == mark
        server.epochs.check("server", "aggregator", Epoch(1, bytes(32)))


def test_a_host_whose_clock_is_far_behind_is_put_right(
    federation: Federation, custodian: Custodian
) -> None:
    """The custodian runs since a while, so its certificate is good at both times."""
    behind = HandClock(START - 200 * DAY)
    alice = federation.node("alice", clock=behind)
    custody = CustodyMeeting(custodian, alice)
    certificate = make_custodian_certificate(
        "alice",
        custodian.key,
        custody.identity.tls_key,
        at=START - 300 * DAY,
        life=365 * DAY,
    )
    custody.node.pin(certificate)
    possession = custody.node.possess(custody.custodian.challenge(custody.node.hello()))
    proof = custody.node.prove(custody.custodian.prove(possession))
    custody.node.accept(custody.custodian.warrant(proof))
    assert alice.clock() == START
    assert alice.clock.behind() == 200 * DAY
    # And from then on a clock that is set back brings nothing.
    behind.now -= 1000 * DAY
    assert alice.clock() == START


def test_a_host_whose_clock_is_before_the_custodians_start_gets_nothing(
    federation: Federation, custodian: Custodian
) -> None:
    """TLS looks at the host's own clock and would refuse it as well."""
    behind = HandClock(START - 2000 * DAY)
    custody = CustodyMeeting(custodian, federation.node("alice", clock=behind))
    assert code_of(custody.hello) == "custodian-certificate-not-yet-valid"


def test_a_host_whose_clock_is_ahead_is_not_put_back(
    federation: Federation, custodian: Custodian
) -> None:
    ahead = HandClock(START + timedelta(hours=2))
    alice = federation.node("alice", clock=ahead)
    CustodyMeeting(custodian, alice).accept()
    assert alice.clock() == ahead.now


def test_a_node_by_identity_proves_itself_by_its_partys_key(
    mixed: Federation, tmp_path: Path
) -> None:
    with custodian_of(mixed, "bob", tmp_path) as custodian:
        bob = replace(mixed.node("bob"), warrant=HeldWarrant())
        assert CustodyMeeting(custodian, bob).accept() is None
        peer, _ = Meeting(mixed.node("aggregator"), bob).admit()
        assert peer.party == "bob"


def test_evidence_for_the_custodian_admits_nobody_at_the_server(
    custodian: Custodian, alice: Node, server: Node
) -> None:
    """A custodian keeps what the node showed it, and shows it to the server."""
    custody = CustodyMeeting(custodian, alice)
    proof = custody.node_proof()
    assert isinstance(proof, EvidenceProof)
    custody.node.accept(custody.custodian.warrant(proof))
    meeting = Meeting(server, alice)
    meeting.server_proof()
    assert code_of(meeting.server.admit, proof) == "report-data"
    assert meeting.table.parties() == ()


def test_steps_out_of_order_are_bugs(custody: CustodyMeeting, alice: Node) -> None:
    side = custody.node
    some = CustodianProof(signature=bytes(64))
    with pytest.raises(RuntimeError):
        side.possess(CustodianChallenge(nonce=bytes(32)))
    with pytest.raises(RuntimeError):
        side.prove(some)
    terms = custody.office.register.grant(
        shown_by(alice.plan, alice.identity.tls_spki, party="alice"),
        collateral=None,
        at=START,
        life=DAY,
    )
    good = telling(sign_warrant(terms, custody.office.key))
    with pytest.raises(RuntimeError):
        side.accept(good)
    custody.possession()
    with pytest.raises(RuntimeError):
        side.accept(good)
    assert code_of(side.prove, some) == "custodian-signature"
    with pytest.raises(RuntimeError):
        side.accept(good)


def test_a_node_of_a_party_that_the_plan_lacks_is_a_users_error(
    alice: Node, federation: Federation
) -> None:
    stranger = warranted(
        replace(alice, party="mallory"),
        federation.warrant("alice", alice.identity.tls_spki),
    )
    with pytest.raises(ConfigError, match="mallory"):
        NodeMeeting(stranger)
