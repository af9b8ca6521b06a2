from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import (
    AppraisalError,
    CloisterError,
    ConfigError,
    PeerInTrouble,
    PlatformError,
    ProtocolError,
    RefusedByPeer,
    StorageError,
    VerificationError,
)
from cloister.ratls.challenge import (
    Refusal,
    decode_from_client,
    decode_message,
    encode_message,
)
from cloister.ratls.refusals import (
    bare_refusal_from,
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


def test_a_stranger_hears_a_code_and_a_line() -> None:
    assert bare_refusal_from(ERROR) == Refusal(code="odd", what="the peer is odd")


@pytest.mark.parametrize("kind", [ConfigError, StorageError, PlatformError])
def test_what_is_wrong_on_this_side_is_no_peers_business(
    kind: type[CloisterError],
) -> None:
    own = kind(
        "/home/op/collateral-sgx.json is missing",
        code="collateral-missing",
        expected="/dev/tdx_guest",
        got="nothing at /home/op",
    )
    for refusal in (refusal_from(own), bare_refusal_from(own)):
        assert refusal == Refusal(
            code="collateral-missing",
            what="it cannot go on; its own log says why",
            trouble=True,
        )
    assert "/home" not in encode_status(own)


@pytest.mark.parametrize("kind", [VerificationError, AppraisalError, ProtocolError])
def test_what_is_wrong_with_a_peer_is_told_to_it(kind: type[CloisterError]) -> None:
    theirs = kind("the peer is odd", code="odd", expected="even", got="odd")
    assert refusal_from(theirs).got == "odd"


@pytest.mark.parametrize(
    "code",
    [
        "pcs-tls",
        "pcs-status",
        "collateral-rollback",
        "crl-expired",
        "tcb-info-not-yet-valid",
        "clock-ahead",
        "clock-behind",
        "custodian-busy",
        "server-busy",
        "warrant-limit",
    ],
)
@pytest.mark.parametrize("kind", [VerificationError, ProtocolError])
def test_who_could_judge_nobody_says_so_and_is_not_taken_for_a_judge(
    kind: type[CloisterError], code: str
) -> None:
    own = kind("it is odd", code=code, expected="even", got="odd")
    for refusal in (
        refusal_from(own),
        bare_refusal_from(own),
        decode_status(encode_status(own)),
    ):
        assert refusal.trouble
        crossed = decode_message(encode_message(refusal), decode_from_client)
        assert isinstance(crossed, Refusal)
        error = refused_by_peer("the server", crossed)
        assert isinstance(error, PeerInTrouble)
        assert isinstance(error, ProtocolError)
        assert error.code == code
        assert error.what == "the server cannot go on for now: it is odd"


@pytest.mark.parametrize(
    "code",
    [
        "warrant-superseded",
        "warrant-expired",
        "certificate-expired",
        "appraisal-measurement",
        "tcb-revoked",
        "tcb-info-tee",
        "plan-withdrawn",
        "message-order",
        "admission-lapsed",
    ],
)
def test_a_judgement_is_no_trouble_of_the_judge(code: str) -> None:
    for kind in (VerificationError, AppraisalError, ProtocolError):
        refusal = refusal_from(kind("the peer is odd", code=code))
        assert not refusal.trouble
        assert isinstance(refused_by_peer("the server", refusal), RefusedByPeer)


def test_a_long_error_is_cut_to_what_a_message_may_hold() -> None:
    long = VerificationError(
        "w" * 9999, code="c" * 99, expected="e" * 999, got="g" * 999
    )
    for refusal in (refusal_from(long), bare_refusal_from(long)):
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
