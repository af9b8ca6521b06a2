from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError, RefusedByPeer, VerificationError
from cloister.ratls.challenge import (
    Refusal,
    decode_from_client,
    decode_message,
    encode_message,
)
from cloister.ratls.refusals import (
    decode_status,
    encode_status,
    refusal_from,
    refused_by_peer,
)

ERROR = VerificationError(
    "the peer is odd", code="odd", expected="even", got="odd", remedy="Add one."
)


def test_an_error_crosses_the_wire_with_its_reason() -> None:
    refusal = decode_status(encode_status(ERROR))
    assert refusal == Refusal(
        code="odd", what="the peer is odd", expected="even", got="odd"
    )
    error = refused_by_peer("the server", refusal)
    assert isinstance(error, RefusedByPeer)
    assert str(error) == (
        "the server refused this node: the peer is odd; expected even; got odd"
    )


def test_a_long_error_is_cut_to_what_a_message_may_hold() -> None:
    long = VerificationError(
        "w" * 9999, code="c" * 99, expected="e" * 999, got="g" * 999
    )
    refusal = refusal_from(long)
    assert decode_message(encode_message(refusal), decode_from_client) == refusal


def test_a_peers_words_are_shown_in_one_harmless_line() -> None:
    error = refused_by_peer(
        "the server",
        Refusal(code="a\nb", what="\x1b[2Jgone\r\n", expected="\u202e", got="\0"),
    )
    assert str(error).isprintable()
    assert error.code == "a b"


def test_a_status_is_shown_in_harmless_lines_as_well() -> None:
    wild = VerificationError("a\nb", code="c\td", expected="\x1b[1m", got="\u2028")
    refusal = decode_status(encode_status(wild))
    assert refusal == Refusal(code="c d", what="a b", expected=" [1m", got=" ")


@pytest.mark.parametrize(
    "details", [None, "", "{}", "Socket closed", "\ud800", "[" * 99]
)
def test_a_broken_call_is_no_refusal(details: str | None) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_status(details)
    assert caught.value.code == "call-broken"


@given(st.text(st.characters(codec=None), max_size=200))
def test_no_details_raise_anything_but_a_protocol_error(details: str) -> None:
    with contextlib.suppress(ProtocolError):
        decode_status(details)
