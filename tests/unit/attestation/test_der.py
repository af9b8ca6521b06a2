from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.der import (
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SET,
    UTF8_STRING,
    encode,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_sequence,
    parse_der,
)
from cloister.errors import VerificationError

MALFORMED = {
    "nothing": b"",
    "half a header": b"\x30",
    "an indefinite length": b"\x30\x80\x00\x00",
    "a long form for a short length": b"\x04\x81\x01\x00",
    "a length with a leading zero": b"\x04\x82\x00\x80" + bytes(128),
    "a length of four octets": b"\x04\x84\x01\x00\x00\x00",
    "a length that is cut off": b"\x04\x82\x01",
    "a value that is cut off": b"\x04\x05abcd",
    "a byte after the value": b"\x04\x01a\x00",
    "a tag of two octets": b"\x1f\x81\x01\x00",
}


@pytest.mark.parametrize("der", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_strict_der_is_refused(der: bytes) -> None:
    with pytest.raises(VerificationError) as refusal:
        parse_der(der)
    assert refusal.value.code == "der-malformed"


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x7f", b"\xff\x80"], ids=["empty", "00", "ff"]
)
def test_an_integer_not_in_its_shortest_form_is_refused(content: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_der(encode(INTEGER, content)).integer()


@pytest.mark.parametrize("content", [b"", b"\x80\x01", b"\x2a\x86", bytes(65)])
def test_an_identifier_not_in_its_shortest_form_is_refused(content: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_der(encode(OBJECT_IDENTIFIER, content)).oid()


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff\xff"])
def test_a_boolean_other_than_00_or_ff_is_refused(content: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_der(encode(0x01, content)).boolean()


@pytest.mark.parametrize("content", [b"", b"\x08\x00", b"\x01", b"\x01\x81"])
def test_a_bit_string_with_a_wrong_end_is_refused(content: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_der(encode(0x03, content)).bit_string()


@pytest.mark.parametrize(("tag", "content"), [(0x0C, b"\xff"), (0x13, b"\xc3\xa4")])
def test_a_string_that_is_not_well_encoded_is_refused(tag: int, content: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_der(encode(tag, content)).text()


def test_a_value_read_as_another_kind_is_refused() -> None:
    element = parse_der(encode(OCTET_STRING, b"a"))
    for read in (
        element.children,
        element.integer,
        element.enumerated,
        element.boolean,
        element.oid,
        element.bit_string,
        element.text,
    ):
        with pytest.raises(VerificationError):
            read()


@given(st.integers(min_value=0, max_value=2**80))
@settings(deadline=None, derandomize=True)
def test_an_integer_comes_back(value: int) -> None:
    assert parse_der(encode_integer(value)).integer() == value


@given(st.lists(st.integers(min_value=0, max_value=2**40), max_size=8))
@settings(deadline=None, derandomize=True)
def test_an_identifier_comes_back(arcs: list[int]) -> None:
    dotted = ".".join(map(str, [2, 999, *arcs]))
    assert parse_der(encode_oid(dotted)).oid() == dotted


@pytest.mark.parametrize("size", [0, 127, 128, 255, 256, 65_536])
def test_octets_of_every_length_form_come_back(size: int) -> None:
    content = bytes(size)
    assert parse_der(encode(OCTET_STRING, content)).octets() == content


def test_members_of_a_sequence_and_of_a_set_come_back_in_order() -> None:
    members = encode_integer(1), encode_boolean(value=True), encode_boolean(value=False)
    sequence = parse_der(encode_sequence(*members)).children()
    assert sequence[0].integer() == 1
    assert [member.boolean() for member in sequence[1:]] == [True, False]
    assert parse_der(encode(SET, members[0])).children(SET)[0].integer() == 1


@given(st.binary(max_size=64))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_read_exactly_or_refused(data: bytes) -> None:
    try:
        element = parse_der(data)
    except VerificationError:
        return
    assert encode(element.tag, element.content) == data


def test_an_integer_too_long_to_be_written_out_is_refused() -> None:
    """A stranger's certificate may hold one; no error may be made of its digits."""
    assert parse_der(encode(INTEGER, b"\x01" * 40)).integer()
    with pytest.raises(VerificationError, match="over 40 octets"):
        parse_der(encode(INTEGER, b"\x01" * 2001)).integer()


@pytest.mark.parametrize("text", ["\x1b[2JOK genuine", "two\nlines", "bell\x07"])
def test_a_string_that_would_write_on_a_terminal_is_refused(text: str) -> None:
    with pytest.raises(VerificationError, match="control characters"):
        parse_der(encode(UTF8_STRING, text.encode())).text()
