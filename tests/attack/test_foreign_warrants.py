"""Warrants that do not hold, or hold for something else."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    quoting,
    rewarranted,
    warranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting
from tests.support.refusals import code_of

from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.warrant import sign_warrant

BAD_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"run_id": "blobs/b"}, "warrant-foreign"),
    ({"plan_hash": bytes(32)}, "warrant-foreign"),
    ({"party": "carol"}, "warrant-foreign"),
    ({"tls_key": new_identity().tls_spki}, "warrant-foreign"),
    ({"expires_at": int(START.timestamp())}, "warrant-malformed"),
    ({"issued_at": 0, "expires_at": int(START.timestamp())}, "warrant-expired"),
    ({"issued_at": int(START.timestamp()) + 3600}, "warrant-expired"),
]


@pytest.mark.parametrize(("terms", "code"), BAD_TERMS)
def test_a_client_whose_warrant_does_not_hold_is_refused_before_any_quote(
    federation: Federation, server: Node, alice: Node, terms: Any, code: str
) -> None:
    counting = CountingPlatform(server.platform)
    meeting = Meeting(
        quoting(server, counting), rewarranted(federation, alice, **terms)
    )
    answer = meeting.answer()
    made = counting.quotes
    assert code_of(lambda: meeting.server.prove(answer)) == code
    assert counting.quotes == made
    assert meeting.table.parties() == ()


@pytest.mark.parametrize(("terms", "code"), BAD_TERMS)
def test_a_server_whose_warrant_does_not_hold_gets_no_evidence(
    federation: Federation, server: Node, alice: Node, terms: Any, code: str
) -> None:
    counting = CountingPlatform(alice.platform)
    meeting = Meeting(
        rewarranted(federation, server, **terms), quoting(alice, counting)
    )
    assert code_of(meeting.client_proof) == code
    assert counting.quotes == 0


def test_a_warrant_for_the_other_role_is_refused(
    federation: Federation, server: Node, alice: Node
) -> None:
    as_server = rewarranted(federation, alice, role="server")
    assert code_of(Meeting(server, as_server).server_proof) == "warrant-foreign"
    as_worker = rewarranted(federation, server, role="worker")
    assert code_of(Meeting(as_worker, alice).client_proof) == "warrant-foreign"


@pytest.mark.parametrize("signer", ["bob", "aggregator", None])
def test_a_warrant_signed_by_anybody_else_is_refused(
    federation: Federation, server: Node, alice: Node, signer: str | None
) -> None:
    key = federation.keys[signer] if signer else Ed25519PrivateKey.generate()
    forged = warranted(alice, sign_warrant(alice.warrant.current.terms, key))
    assert code_of(Meeting(server, forged).server_proof) == "warrant-signature"


def test_a_genuine_server_that_no_party_warranted_is_refused(
    federation: Federation, server: Node, alice: Node
) -> None:
    terms = server.warrant.current.terms
    by_alice = warranted(server, sign_warrant(terms, federation.keys["alice"]))
    assert code_of(Meeting(by_alice, alice).client_proof) == "warrant-signature"


def test_one_partys_warrant_admits_no_other_party(
    server: Node, alice: Node, bob: Node
) -> None:
    thief = warranted(bob, alice.warrant.current)
    assert code_of(Meeting(server, thief).server_proof) == "warrant-signature"


def test_a_stolen_warrant_does_not_fit_another_key(
    federation: Federation, server: Node, alice: Node
) -> None:
    thief = warranted(federation.node("alice"), alice.warrant.current)
    assert code_of(Meeting(server, thief).server_proof) == "warrant-foreign"


@pytest.mark.parametrize(
    ("first", "second", "code"), [(5, 4, "epoch-old"), (5, 5, "epoch-forked")]
)
def test_an_older_epoch_or_another_key_of_the_same_one_is_refused_before_any_quote(
    federation: Federation, clock: HandClock, first: int, second: int, code: str
) -> None:
    counting = CountingPlatform(federation.platform("aggregator"))
    server = quoting(federation.node("aggregator", clock=clock), counting)
    table = AdmissionTable(server.clock)
    newer = federation.node("alice", clock=clock, epoch=first)
    older = federation.node("alice", clock=clock, epoch=second)
    Meeting(server, newer, table=table).finish()
    meeting = Meeting(server, older, table=table)
    answer = meeting.answer()
    made = counting.quotes
    assert code_of(meeting.server.prove, answer) == code
    assert counting.quotes == made
    assert table.check(newer.identity.tls_spki).epoch == first


def test_a_warrant_admits_its_own_key_again_and_no_other(
    federation: Federation, server: Node, alice: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    for _ in range(2):
        Meeting(server, alice, table=table).finish()
    twin = Meeting(server, federation.node("alice", clock=clock), table=table)
    assert code_of(twin.server_proof) == "epoch-forked"
    [peer] = table.parties()
    assert peer.tls_key == alice.identity.tls_spki


def test_two_enrolments_at_once_with_one_epoch_admit_one(
    federation: Federation, server: Node, clock: HandClock
) -> None:
    table = AdmissionTable(server.clock)
    twins = [federation.node("alice", clock=clock) for _ in range(2)]
    first, second = (Meeting(server, twin, table=table) for twin in twins)
    proofs = [first.client_proof(), second.client_proof()]
    winner, _ = first.server.admit(proofs[0])
    assert code_of(second.server.admit, proofs[1]) == "epoch-forked"
    assert table.parties() == (winner,)
