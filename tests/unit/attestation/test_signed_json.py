from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.signed_json import (
    MAX_DOCUMENT_BYTES,
    Svn8,
    read_document,
    read_object,
    split_signed_document,
    timestamp,
)
from cloister.errors import VerificationError

SIGNATURE = "ab" * 64


class Form(msgspec.Struct):
    svn: Svn8


def body(inner: str, *, before: str = "", after: str = "") -> bytes:
    return f'{{{before}"tcbInfo":{inner},"signature":"{SIGNATURE}"{after}}}'.encode()


def refused(text: bytes) -> str:
    with pytest.raises(VerificationError) as refusal:
        read_object(text, what="document")
    assert (refusal.value.code, refusal.value.step) == ("collateral-malformed", 4)
    return refusal.value.what


MALFORMED = {
    "nothing": b"",
    "no object": b"[]",
    "half an object": b'{"a":1',
    "two objects": b"{}{}",
    "a doubled key": b'{"a":1,"a":1}',
    "a doubled key deep inside": b'{"a":[{"b":{"c":1,"c":2}}]}',
    "a doubled key in two spellings": b'{"a":1,"\\u0061":1}',
    "a fraction": b'{"a":1.0}',
    "an exponent": b'{"a":1e3}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "a number of eleven digits": b'{"a":12345678901}',
    "a number of a million digits": b'{"a":' + b"1" * 100_000 + b"}",
    "depth": b'{"a":' + b"[" * 100_000,
    "no UTF-8": b'{"a":"\xff"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a raw line break in text": b'{"a":"\n"}',
    "too much": b'{"a":"' + b"x" * MAX_DOCUMENT_BYTES + b'"}',
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_json_that_readers_could_differ_on_is_refused(text: bytes) -> None:
    refused(text)


def test_fields_are_of_their_type_and_in_their_range() -> None:
    assert read_document(b'{"svn":255}', Form, what="document").svn == 255
    for wrong in (b"256", b"-1", b'"1"', b"true", b"null", b"[1]"):
        with pytest.raises(VerificationError):
            read_document(b'{"svn":' + wrong + b"}", Form, what="document")


def test_a_field_added_later_is_passed_over() -> None:
    assert read_document(b'{"new":{},"svn":1}', Form, what="document").svn == 1


@pytest.mark.parametrize(
    "inner",
    [
        "{}",
        '{"a": 1}',
        ' {"a" :\t1 , "b":"}"}',
        '{"signature":"00","tcbInfo":{}}',
        '{"a":"\\"tcbInfo\\":"}',
        '{"\\u0061":"\xe4"}',
    ],
)
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_the_signed_text_is_cut_out_to_the_byte(inner: str, space: str) -> None:
    padded = f'{space}{{{space}"tcbInfo"{space}:{space}{inner.strip()}{space},'
    padded += f'{space}"signature"{space}:{space}"{SIGNATURE}"{space}}}{space}'
    text, signature = split_signed_document(
        padded.encode(), name="tcbInfo", what="TCB info"
    )
    assert text == inner.strip().encode()
    assert signature == SIGNATURE


def test_the_signature_may_come_first() -> None:
    turned = f'{{"signature":"{SIGNATURE}","tcbInfo":{{"a":1}}}}'.encode()
    assert split_signed_document(turned, name="tcbInfo", what="TCB info") == (
        b'{"a":1}',
        SIGNATURE,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        b"{}",
        b'{"tcbInfo":{}}',
        b'{"enclaveIdentity":{},"signature":"00"}',
        b'{"tcbInfo":{},"signature":1}',
        body("{}", after=',"more":1'),
        body("{}", before='"tcbInfo":{},'),
        body("{}")[:-1],
    ],
)
def test_a_body_of_another_form_is_refused(wrong: bytes) -> None:
    with pytest.raises(VerificationError):
        split_signed_document(wrong, name="tcbInfo", what="TCB info")


@given(
    document=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.integers(-999, 999) | st.text(max_size=9) | st.booleans(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=9,
        ),
        max_size=5,
    ),
    indent=st.sampled_from([None, 0, 2]),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_document_is_cut_out_as_it_was_written(
    document: dict[str, object], indent: int | None
) -> None:
    inner = json.dumps(document, indent=indent)
    text, _ = split_signed_document(body(inner), name="tcbInfo", what="TCB info")
    assert text == inner.encode()


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    with suppress(VerificationError):
        read_object(data, what="document")
    with suppress(VerificationError):
        split_signed_document(body("{}") + data, name="tcbInfo", what="TCB info")


@pytest.mark.parametrize(
    "text", ["2026-02-30T00:00:00Z", "2026-13-01T00:00:00Z", "0000-01-01T00:00:00Z"]
)
def test_a_day_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        timestamp(text, what="document")


@pytest.mark.parametrize(
    "text",
    [
        '{"\\ud800": 1}',
        '{"id": "\\ud800"}',
        '{"levels": [{"tcb": {"\\udfff": 1}}]}',
    ],
)
def test_half_a_character_is_refused(text: str) -> None:
    """JSON can escape a lone surrogate, and no encoding can carry it any further."""
    with pytest.raises(VerificationError, match="half a character"):
        read_object(text.encode(), what="document")
