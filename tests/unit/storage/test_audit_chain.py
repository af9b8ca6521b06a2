from __future__ import annotations

import hashlib
import io
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.audit_signing import (
    PartySigner,
    log_of,
    made_links,
    verified_links,
)

from cloister.errors import CloisterError, StorageError
from cloister.storage.audit_chain import (
    FIRST,
    Link,
    head_of,
    make_payload,
    next_link,
    parse_link,
    parse_links,
    sign_payload,
)
from cloister.storage.dsse import Envelope, encode_envelope

SIGNER = PartySigner()
ENTRIES = [b'{"kind":"round","round":%d}' % number for number in range(5)]
LINKS = made_links(ENTRIES, signer=SIGNER)
LINES = [encode_envelope(link.envelope) + b"\n" for link in LINKS]
LOG = b"".join(LINES)


def refused(log: bytes, code: str) -> StorageError:
    with pytest.raises(StorageError) as caught:
        list(parse_links(io.BytesIO(log)))
    assert caught.value.code == code
    return caught.value


def signed(payload: bytes) -> bytes:
    return encode_envelope(sign_payload(payload, signer=SIGNER)) + b"\n"


def payload_of(link: Link, **values: object) -> bytes:
    """Returns the record's payload with other values, and its own spelling."""
    members = json.loads(link.envelope.payload) | values
    return json.dumps(members, separators=(",", ":")).encode()


def test_a_log_is_read_as_it_was_written() -> None:
    links = verified_links(LOG, signer=SIGNER)
    assert links == LINKS
    assert [link.entry for link in links] == ENTRIES
    assert [link.seq for link in links] == [0, 1, 2, 3, 4]
    assert [link.previous for link in links] == [
        FIRST,
        *(link.head for link in LINKS[:-1]),
    ]


def test_a_payload_and_its_head_are_what_the_specification_says() -> None:
    link = LINKS[1]
    assert link.envelope.payload == (
        b'{"seq":1,"previous":"%s","at":1001000,"entry":{"kind":"round","round":1}}'
        % LINKS[0].head.encode()
    )
    encoded = b"DSSEv1 38 application/vnd.cloister.audit.v1+json %d %b" % (
        len(link.envelope.payload),
        link.envelope.payload,
    )
    assert link.head == hashlib.sha256(encoded).hexdigest()
    assert head_of(link.envelope.payload) == link.head
    assert link.envelope.signature == SIGNER.sign(encoded)
    assert link.envelope.keyid == SIGNER.keyid


def test_an_empty_log_has_no_records() -> None:
    assert list(parse_links(io.BytesIO(b""))) == []


def test_a_clock_that_goes_back_is_held_where_it_was() -> None:
    link = next_link(LINKS[-1], entry=b"{}", at_ms=5, signer=SIGNER)
    assert link.at_ms == LINKS[-1].at_ms
    assert parse_link(log_of([link]), after=LINKS[-1], number=6) == link


def test_a_log_cut_at_a_line_is_a_chain_with_another_head() -> None:
    # It must be: nothing in a log can say that nothing follows. Heads do.
    for kept in range(len(LINES)):
        links = verified_links(b"".join(LINES[:kept]), signer=SIGNER)
        assert links == LINKS[:kept]


@given(st.integers(0, len(LOG) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    log = bytearray(LOG)
    log[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CloisterError):
        verified_links(bytes(log), signer=SIGNER)


@given(st.integers(0, len(LOG)))
def test_a_log_cut_inside_a_line_is_refused(kept: int) -> None:
    ends = {0, *itertools.accumulate(map(len, LINES))}
    if kept not in ends:
        error = refused(LOG[:kept], "audit-malformed")
        assert "newline" in error.got


@given(st.permutations(range(len(LINES))))
def test_swapped_records_are_refused(order: list[int]) -> None:
    if order != sorted(order):
        refused(b"".join(LINES[i] for i in order), "audit-order")


@given(st.integers(0, len(LINES) - 2))
def test_a_removed_record_is_refused(missing: int) -> None:
    error = refused(b"".join(LINES[:missing] + LINES[missing + 1 :]), "audit-order")
    assert f"line {missing + 1} " in error.what


@given(st.integers(0, len(LINES) - 1))
def test_a_doubled_record_is_refused(doubled: int) -> None:
    lines = [*LINES[: doubled + 1], *LINES[doubled:]]
    error = refused(b"".join(lines), "audit-order")
    assert f"line {doubled + 2} " in error.what


@given(st.binary(min_size=1, max_size=200))
def test_any_other_file_is_refused_with_our_error(content: bytes) -> None:
    refused(content, "audit-malformed")


@pytest.mark.parametrize("number", range(len(LINES) - 1))
def test_a_record_signed_anew_breaks_the_chain_after_it(number: int) -> None:
    link = LINKS[number]
    lines = list(LINES)
    lines[number] = signed(payload_of(link, entry={"kind": "round", "round": 99}))
    error = refused(b"".join(lines), "audit-broken")
    assert f"line {number + 2} " in error.what
    assert error.got == link.head


def test_a_chain_of_another_log_cannot_be_put_behind_this_one() -> None:
    other = made_links([b'{"kind":"other"}', *ENTRIES[1:]], signer=SIGNER)
    refused(LINES[0] + log_of(other[1:]), "audit-broken")


def test_a_first_record_that_names_one_before_it_is_refused() -> None:
    log = signed(payload_of(LINKS[0], previous="1" * 64))
    refused(log, "audit-broken")


def test_a_log_that_begins_later_is_refused() -> None:
    refused(b"".join(LINES[1:]), "audit-order")


def test_time_that_goes_back_is_refused() -> None:
    log = LINES[0] + signed(payload_of(LINKS[1], at=LINKS[0].at_ms - 1))
    error = refused(log, "audit-order")
    assert str(LINKS[0].at_ms) in error.expected


def test_records_of_one_moment_are_in_order() -> None:
    log = LINES[0] + signed(payload_of(LINKS[1], at=LINKS[0].at_ms))
    assert len(verified_links(log, signer=SIGNER)) == 2


@pytest.mark.parametrize(
    "payload",
    [
        payload_of(LINKS[0], more=1),
        payload_of(LINKS[0], entry=None),
        payload_of(LINKS[0], entry=[]),
        payload_of(LINKS[0], entry="{}"),
        payload_of(LINKS[0], seq=-1),
        payload_of(LINKS[0], seq=0.0),
        payload_of(LINKS[0], seq="0"),
        payload_of(LINKS[0], at=-1),
        payload_of(LINKS[0], at=2**53 + 1),
        payload_of(LINKS[0], at=1e9),
        payload_of(LINKS[0], previous="0" * 63),
        payload_of(LINKS[0], previous="0" * 64 + "\n"),
        payload_of(LINKS[0], previous="A" * 64),
        LINKS[0].envelope.payload.replace(b",", b", ", 1),
        LINKS[0].envelope.payload.replace(b"{", b'{"seq":7,', 1),
        LINKS[0].envelope.payload.replace(b"round", b"\xff", 1),
        LINKS[0].envelope.payload.replace(b"{", b"[", 1),
        b'{"seq":0,"previous":"%s","at":0,"entry":%s}'
        % (FIRST.encode(), b'{"a":' * 99_999 + b"0" + b"}" * 99_999),
        b"",
    ],
    ids=lambda payload: payload[:100].decode("latin-1"),
)
def test_a_record_of_another_form_or_spelling_is_refused(payload: bytes) -> None:
    error = refused(signed(payload), "audit-malformed")
    assert error.what.startswith("line 1 ")


def test_an_envelope_of_another_kind_is_no_record() -> None:
    envelope = LINKS[0].envelope
    other = Envelope(
        payload=envelope.payload,
        payload_type="application/vnd.cloister.audit-head.v1+json",
        keyid=envelope.keyid,
        signature=envelope.signature,
    )
    error = refused(encode_envelope(other) + b"\n", "audit-malformed")
    assert "audit-head" in error.got


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"1",
        b"[]",
        b'"a"',
        b"{",
        b'{"a":1} ',
        b' {"a":1}',
        b'{"a":"\xff"}',
        b"{}{}",
    ],
)
def test_an_entry_that_is_no_object_is_a_bug_and_signs_nothing(entry: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        make_payload(seq=0, previous=FIRST, at_ms=0, entry=entry)
    with pytest.raises(ValueError, match="record"):
        next_link(None, entry=entry, at_ms=0, signer=SIGNER)


def test_a_log_that_cannot_be_read_says_so() -> None:
    with open("/proc/self/mem", "rb", buffering=0) as unreadable:  # noqa: PTH123
        log = io.BufferedReader(unreadable)
        with pytest.raises(StorageError) as caught:
            list(parse_links(log))
    assert caught.value.code == "audit-unreadable"
