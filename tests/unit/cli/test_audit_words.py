from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from tests.support.shown_records import ALICE, TESTIMONY, WARRANT

from cloister.cli.audit_words import rounds_words, words_of
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    NodeRefused,
    RefusalsCounted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    ServerIntroduced,
    WarrantRenewed,
)

ENTRIES: list[tuple[AnyEntry, str, str]] = [
    (
        RunOpened(run_id="blobs/a", plan_hash=bytes(32), plan=b"", consents=(b"", b"")),
        "all parties",
        "The run blobs/a was opened under the plan 0000000000000000, to which 2"
        " parties consented.",
    ),
    (CollateralUsed(sha256="2" * 64, text=""), "server", "to judge evidence by"),
    (
        ServerIntroduced(
            warrant=WARRANT,
            quote=b"",
            collateral="2" * 64,
            admission_key=b"",
            encryption_key=bytes(32),
            completed=4,
            state=bytes(32),
            restart=True,
        ),
        "aggregator",
        "A server proved itself, epoch 3, and went on with the log after round 4.",
    ),
    (
        NodeAdmitted(
            testimony=TESTIMONY,
            expires_at=0,
            last_round=7,
            verdict={"admit": "identity"},
        ),
        "alice",
        "A node, epoch 3, was admitted by its party's key alone, up to round 7.",
    ),
    (
        NodeRefused(
            role="worker",
            party="bob",
            where="enrolment",
            code="report-data",
            reason="made for something else",
            testimony=None,
        ),
        "bob",
        "A node of the worker was refused at the door: made for something else"
        " (report-data)",
    ),
    (RefusalsCounted(party="bob", count=9), "bob", "9 more refusals"),
    (
        AdmissionWithdrawn(
            party="bob", tls_key_sha256="3" * 64, code="revoked", reason="revoked"
        ),
        "bob",
        "The admission of node 3333333333333333 was withdrawn: revoked (revoked)",
    ),
    (WarrantRenewed(warrant=WARRANT), "aggregator", "was renewed, epoch 3."),
    (
        RoundCompleted(round=2, head="4" * 64, participants=(ALICE,), state=None),
        "alice",
        "Round 2 was completed and countersigned.",
    ),
    (
        ModelSealed(
            sha256="5" * 64,
            size_bytes=10,
            recipients=("age1x", "age1y"),
            rounds=2,
            state="6" * 64,
            head="7" * 64,
            reports=(ALICE,),
        ),
        "alice",
        "The model of 2 rounds was sealed to age1x, age1y: 10 bytes, sha256 "
        + "5" * 64,
    ),
    (
        RunFailed(code="x", reason="it\nfell"),
        "server",
        "The server gave up: it fell (x)",
    ),
]


@pytest.mark.parametrize(("entry", "who", "what"), ENTRIES)
def test_each_kind_of_record_has_a_sentence(
    entry: AnyEntry, who: str, what: str
) -> None:
    said_who, said_what = words_of(entry)
    assert said_who == who
    assert what in said_what
    assert "\n" not in said_what


def test_no_kind_of_record_is_left_out() -> None:
    assert {type(entry) for entry, _, _ in ENTRIES} == set(get_args(AnyEntry))


def a_round(number: int, *parties: str) -> RoundCompleted:
    return RoundCompleted(
        round=number,
        head="4" * 64,
        participants=tuple(
            msgspec.structs.replace(ALICE, party=party) for party in parties
        ),
        state=None,
    )


def test_rounds_are_told_together() -> None:
    rounds = [a_round(number, "alice", "bob") for number in range(2, 10)]
    assert rounds_words(rounds) == (
        "alice, bob",
        "Rounds 2 to 9 were completed and countersigned.",
    )


def test_rounds_that_not_everybody_took_part_in_are_told_to_be_that() -> None:
    drawn = [a_round(1, "alice", "bob"), a_round(2, "bob", "carol")]
    assert rounds_words(drawn) == (
        "alice, bob, carol",
        "Rounds 1 to 2 were completed and countersigned, by 2 of them each.",
    )
    who, what = rounds_words([*drawn, a_round(3, "alice", "bob", "carol")])
    assert who == "alice, bob, carol"
    assert what.endswith("countersigned, by 2 to 3 of them each.")


def test_of_very_many_parties_some_are_named() -> None:
    who, _ = rounds_words([a_round(1, *(f"w{number}" for number in range(1000)))])
    assert who.startswith("w0, w1, ")
    assert who.endswith(" and 984 more")
