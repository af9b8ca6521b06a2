from __future__ import annotations

from typing import get_args

import pytest
from tests.support.shown_records import TESTIMONY, WARRANT

from cloister.cli.custodian_audit_words import custodian_words_of
from cloister.custody.audit_records import (
    AnyCustodianEntry,
    CollateralKept,
    ConsentGiven,
    ConsentWithdrawn,
    CustodianOpened,
    KeyAdded,
    KeyReleased,
    KeyRevoked,
    KeyRotated,
    MarkRewound,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)

ENTRIES: list[tuple[AnyCustodianEntry, str, str]] = [
    (CustodianOpened(party="alice"), "alice", "The custodian began its records."),
    (
        ConsentGiven(
            run_id="blobs/a",
            plan_hash=bytes(32),
            plan=b"",
            consent=b"",
            supersedes=bytes([1]) * 32,
        ),
        "blobs/a",
        "The party consented to the plan 0000000000000000, in the place of"
        " 0101010101010101.",
    ),
    (
        ConsentWithdrawn(run_id="blobs/a", plan_hash=bytes(32)),
        "blobs/a",
        "The party withdrew its consent to 0000000000000000.",
    ),
    (CollateralKept(sha256="2" * 64, text=""), "custodian", "to judge evidence by"),
    (
        WarrantSigned(terms=WARRANT.terms, epoch_new=True, testimony=TESTIMONY),
        "aggregator",
        "A new node proved itself and was warranted as server of blobs/a, epoch 3.",
    ),
    (
        WarrantNoted(testimony=TESTIMONY),
        "alice",
        "Its worker node proved itself here, for a share of its state's key in"
        " blobs/a.",
    ),
    (
        NodeRefused(code="epoch-old", reason="too\nold", testimony=TESTIMONY),
        "alice",
        "A node that had proved itself was refused: too old (epoch-old)",
    ),
    (
        KeyAdded(key_id="sha256:1", key_kind="data", label="scans"),
        "operator",
        "The data key sha256:1 was added.",
    ),
    (
        KeyRotated(key_id="b", key_kind="data", label="scans", replaces="a"),
        "operator",
        "The data key b took the place of a.",
    ),
    (
        KeyRevoked(key_id="b", key_kind="vault", label="", generation=2),
        "operator",
        "The vault key b was destroyed.",
    ),
    (
        KeyReleased(
            run_id="blobs/a",
            plan_hash=bytes(32),
            role="worker",
            party="alice",
            epoch=2,
            tls_key_sha256="1" * 64,
            encryption_key=bytes(32),
            key_ids=("a", "b"),
        ),
        "alice",
        "Released to its worker, epoch 2 of blobs/a: a, b.",
    ),
    (
        MarkRewound(run_id="blobs/a", round=7, state=bytes(32), audit_head=None),
        "operator",
        "The run blobs/a was let go back behind round 7.",
    ),
]


@pytest.mark.parametrize(("entry", "who", "what"), ENTRIES)
def test_each_kind_of_record_has_a_sentence(
    entry: AnyCustodianEntry, who: str, what: str
) -> None:
    said_who, said_what = custodian_words_of(entry)
    assert said_who == who
    assert what in said_what
    assert "\n" not in said_what


def test_no_kind_of_record_is_left_out() -> None:
    assert {type(it) for it, _, _ in ENTRIES} == set(get_args(AnyCustodianEntry))
