from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError, StorageError
from cloister.ratls.mark import Mark
from cloister.ratls.signed_head import (
    SignedHead,
    encode_head,
    head_from_mark,
    parse_head,
)

MARK = Mark(
    round=7,
    state=bytes([1]) * 32,
    server_epoch=3,
    server_key=bytes([2]) * 32,
    audit_head=bytes([4]) * 32,
)


def head_of(mark: Mark = MARK) -> SignedHead:
    return head_from_mark(
        mark, run_id="blobs/a", plan_hash=bytes([5]) * 32, party="alice", at=1_000
    )


PAYLOAD = encode_head(head_of())


def test_a_head_says_all_that_the_mark_says() -> None:
    head = parse_head(PAYLOAD)
    assert head == head_of()
    assert (head.round, head.state, head.audit_head) == (7, MARK.state, MARK.audit_head)
    assert (head.server_epoch, head.server_key) == (3, MARK.server_key)
    assert (head.run_id, head.party, head.at) == ("blobs/a", "alice", 1_000)


def test_a_mark_without_a_head_says_nothing_of_a_log() -> None:
    with pytest.raises(ConfigError) as caught:
        head_of(msgspec.structs.replace(MARK, audit_head=None))
    assert caught.value.code == "audit-head-missing"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        PAYLOAD + b" ",
        PAYLOAD.replace(b'"round":7', b'"round":7,"round":7'),
        PAYLOAD.replace(b'"round":7', b'"round":-1'),
        PAYLOAD.replace(b'"round":7', b'"round":7.0'),
        PAYLOAD.replace(b'"party":"alice"', b'"party":"Alice"'),
        PAYLOAD.replace(b'"party"', b'"more":1,"party"'),
        PAYLOAD.replace(b"alice", b"al\\u0069ce"),
        b"[" * 100_000,
    ],
)
def test_what_a_custodian_would_not_write_is_refused(payload: bytes) -> None:
    with pytest.raises(StorageError) as caught:
        parse_head(payload)
    assert caught.value.code == "audit-head-malformed"


@given(st.integers(0, len(PAYLOAD) - 1))
def test_a_statement_that_is_cut_is_refused(end: int) -> None:
    with pytest.raises(StorageError):
        parse_head(PAYLOAD[:end])


@given(st.integers(0, 8 * len(PAYLOAD) - 1))
def test_no_flipped_bit_goes_unnoticed(bit: int) -> None:
    changed = bytearray(PAYLOAD)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        found = parse_head(bytes(changed))
    except StorageError:
        return
    assert found != head_of()
