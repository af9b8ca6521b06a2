"""Warrants that do not hold, or hold for something else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    rewarranted,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import Meeting
from tests.support.refusals import code_of

from cloister.ratls.admission import AdmissionTable
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.warrant import sign_warrant

BAD_TERMS: list[tuple[dict[str, Any], str]] = [
    ({"run_id": "blobs/b"}, "warrant-foreign"),
    ({"plan_hash": bytes(32)}, "warrant-foreign"),
    ({"party": "carol"}, "warrant-foreign"),
    ({"tls_key": new_identity().tls_spki}, "warrant-foreign"),
    ({"expires_at": int(START.timestamp())}, "warrant-expired"),
    ({"issued_at": int(START.timestamp()) + 3600}, "warrant-expired"),
]


@pytest.mark.parametrize(("terms", "code"), BAD_TERMS)
def test_a_client_whose_warrant_does_not_hold_is_refused_before_any_quote(
    federation: Federation, server: Node, alice: Node, terms: Any, code: str
) -> None:
    counting = CountingPlatform(server.platform)
    meeting = Meeting(
        replace(server, platform=counting), rewarranted(federation, alice, **terms)
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
        rewarranted(federation, server, **terms), replace(alice, platform=counting)
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
    forged = replace(alice, warrant=sign_warrant(alice.warrant.terms, key))
    assert code_of(Meeting(server, forged).server_proof) == "warrant-signature"


def test_a_genuine_server_that_no_party_warranted_is_refused(
    federation: Federation, server: Node, alice: Node
) -> None:
    terms = server.warrant.terms
    unwarranted = replace(server, warrant=sign_warrant(terms, federation.keys["alice"]))
    assert code_of(Meeting(unwarranted, alice).client_proof) == "warrant-signature"


def test_one_partys_warrant_admits_no_other_party(
    server: Node, alice: Node, bob: Node
) -> None:
    thief = replace(bob, warrant=alice.warrant)
    assert code_of(Meeting(server, thief).server_proof) == "warrant-signature"


def test_a_stolen_warrant_does_not_fit_another_key(
    federation: Federation, server: Node, alice: Node
) -> None:
    thief = replace(federation.node("alice"), warrant=alice.warrant)
    assert code_of(Meeting(server, thief).server_proof) == "warrant-foreign"


@pytest.mark.parametrize(("first", "second"), [(5, 4), (5, 5)])
def test_an_older_or_equal_epoch_is_refused(
    federation: Federation, server: Node, clock: HandClock, first: int, second: int
) -> None:
    table = AdmissionTable(clock)
    newer = federation.node("alice", clock=clock, epoch=first)
    older = federation.node("alice", clock=clock, epoch=second)
    Meeting(server, newer, table=table).finish()
    assert code_of(Meeting(server, older, table=table).server_proof) == "epoch-old"
    assert table.check(newer.identity.tls_spki).epoch == first


def test_a_warrant_admits_once(server: Node, alice: Node, clock: HandClock) -> None:
    table = AdmissionTable(clock)
    Meeting(server, alice, table=table).finish()
    again = Meeting(server, alice, table=table)
    assert code_of(again.server_proof) == "epoch-old"
    assert len(table.parties()) == 1


def test_two_enrolments_at_once_with_one_epoch_admit_one(
    federation: Federation, server: Node, clock: HandClock
) -> None:
    table = AdmissionTable(clock)
    twins = [federation.node("alice", clock=clock) for _ in range(2)]
    first, second = (Meeting(server, twin, table=table) for twin in twins)
    proofs = [first.client_proof(), second.client_proof()]
    winner, _ = first.server.admit(proofs[0])
    assert code_of(lambda: second.server.admit(proofs[1])) == "epoch-old"
    assert table.parties() == (winner,)
