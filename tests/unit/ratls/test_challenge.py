from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    NONCE_BYTES,
    VERSION,
    Admission,
    Answer,
    Challenge,
    EvidenceProof,
    FromClient,
    FromServer,
    Hello,
    IdentityProof,
    Refusal,
    ServerProof,
    decode_from_client,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.warrant import Warrant, WarrantTerms

KEYS = [new_identity().tls_spki for _ in range(2)]
WARRANT = Warrant(
    terms=WarrantTerms(
        run_id="blobs/a",
        plan_hash=bytes(32),
        role="worker",
        party="alice",
        tls_key=KEYS[0],
        epoch=1,
        issued_at=0,
        expires_at=2**53,
    ),
    signature=bytes(64),
)
HELLO = Hello(
    version=VERSION,
    role="worker",
    party="alice",
    run_id="blobs/a",
    plan_hash=bytes(32),
    nonce=bytes(NONCE_BYTES),
    tls_key=KEYS[0],
    encryption_key=bytes(32),
)
REFUSAL = Refusal(code="no", what="because")
FROM_CLIENT: list[FromClient] = [
    HELLO,
    Answer(warrant=WARRANT, signature=b"s"),
    EvidenceProof(quote=b"q"),
    IdentityProof(signature=bytes(64)),
    REFUSAL,
]
FROM_SERVER: list[FromServer] = [
    Challenge(nonce=bytes(32), admission_key=KEYS[1], encryption_key=bytes(32)),
    ServerProof(warrant=WARRANT, quote=b"q"),
    Admission(certificate=b"c", expires_at=2**53, last_round=1),
    REFUSAL,
]


@dataclass(frozen=True)
class Side:
    """One side's messages and how the other side reads them."""

    decoder: msgspec.msgpack.Decoder[Any]
    own: list[Any]
    other: list[Any]


SIDES = [
    pytest.param(Side(decode_from_client, FROM_CLIENT, FROM_SERVER), id="client"),
    pytest.param(Side(decode_from_server, FROM_SERVER, FROM_CLIENT), id="server"),
]


def refusal(raw: bytes, side: Side) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_message(raw, side.decoder)
    return caught.value


@pytest.mark.parametrize("side", SIDES)
def test_every_message_reads_as_written(side: Side) -> None:
    for message in side.own:
        assert decode_message(encode_message(message), side.decoder) == message


@pytest.mark.parametrize("side", SIDES)
def test_a_message_of_the_wrong_side_is_refused(side: Side) -> None:
    for message in side.other:
        if message != REFUSAL:
            raw = encode_message(message)
            assert refusal(raw, side).code == "message-malformed"


@pytest.mark.parametrize("side", SIDES)
def test_every_prefix_of_every_message_is_refused(side: Side) -> None:
    for message in side.own:
        raw = encode_message(message)
        for length in range(len(raw)):
            refusal(raw[:length], side)


@pytest.mark.parametrize("side", SIDES)
def test_bytes_after_a_message_are_refused(side: Side) -> None:
    for message in side.own:
        refusal(encode_message(message) + b"\xc0", side)


@pytest.mark.parametrize("side", SIDES)
def test_an_extra_field_is_refused(side: Side) -> None:
    for message in side.own:
        fields = msgspec.to_builtins(message, builtin_types=(bytes,))
        raw = encode_message({**fields, "surplus": 1})
        assert "surplus" in refusal(raw, side).got


@pytest.mark.parametrize("side", SIDES)
def test_every_field_but_the_ends_of_a_refusal_is_needed(side: Side) -> None:
    for message in side.own:
        fields = msgspec.to_builtins(message, builtin_types=(bytes,))
        for name in fields:
            rest = {key: value for key, value in fields.items() if key != name}
            if message == REFUSAL and name in {"expected", "got", "trouble"}:
                assert decode_message(encode_message(rest), side.decoder) == message
            else:
                refusal(encode_message(rest), side)


@pytest.mark.parametrize("side", SIDES)
def test_a_field_of_another_type_is_refused(side: Side) -> None:
    for message in side.own:
        fields = msgspec.to_builtins(message, builtin_types=(bytes,))
        for name in fields:
            for wrong in (b"\xc0", b"\x90", b"\xca????"):  # nil, a list, a float
                raw = encode_message({**fields, name: msgspec.Raw(wrong)})
                refusal(raw, side)


@pytest.mark.parametrize("side", SIDES)
def test_an_oversized_message_is_refused_before_it_is_parsed(side: Side) -> None:
    assert refusal(bytes(MAX_MESSAGE_BYTES + 1), side).code == "message-size"
    assert refusal(bytes(MAX_MESSAGE_BYTES), side).code == "message-malformed"


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (HELLO, {"party": "alice\n"}),
        (HELLO, {"party": "\x1b[2J"}),
        (HELLO, {"party": "a" * 33}),
        (HELLO, {"run_id": "blobs"}),
        (HELLO, {"run_id": "blobs/a\x00"}),
        (HELLO, {"role": "custodian"}),
        (HELLO, {"plan_hash": bytes(31)}),
        (HELLO, {"nonce": bytes(33)}),
        (HELLO, {"tls_key": bytes(90)}),
        (HELLO, {"encryption_key": b""}),
        (FROM_CLIENT[1], {"signature": bytes(81)}),
        (FROM_CLIENT[2], {"quote": b""}),
        (FROM_CLIENT[2], {"quote": bytes(32 * 1024 + 1)}),
        (FROM_CLIENT[3], {"signature": bytes(63)}),
        (FROM_CLIENT[3], {"signature": bytes(65)}),
        (REFUSAL, {"code": "c" * 65}),
        (REFUSAL, {"what": "w" * 601}),
    ],
)
def test_a_value_out_of_bounds_is_refused(
    message: FromClient, change: dict[str, Any]
) -> None:
    raw = encode_message(msgspec.structs.replace(message, **change))
    with pytest.raises(ProtocolError):
        decode_message(raw, decode_from_client)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 2**53 + 1},
        {"issued_at": -1},
        {"expires_at": 2**64 - 1},
        {"party": ""},
        {"tls_key": b""},
    ],
)
def test_warrant_terms_out_of_bounds_are_refused(change: dict[str, Any]) -> None:
    terms = msgspec.structs.replace(WARRANT.terms, **change)
    warrant = Warrant(terms=terms, signature=WARRANT.signature)
    raw = encode_message(Answer(warrant=warrant, signature=b""))
    with pytest.raises(ProtocolError):
        decode_message(raw, decode_from_client)


@pytest.mark.parametrize(
    "change",
    [
        {"certificate": bytes(8193)},
        {"expires_at": -1},
        {"expires_at": 2**53 + 1},
        {"last_round": 0},
        {"last_round": 2**53 + 1},
    ],
)
def test_an_admission_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    admission = Admission(certificate=b"c", expires_at=0, last_round=1)
    raw = encode_message(msgspec.structs.replace(admission, **change))
    with pytest.raises(ProtocolError):
        decode_message(raw, decode_from_server)


def test_a_message_of_the_first_version_is_no_message_of_this_one() -> None:
    old = encode_message({"message": "client-proof", "quote": b"q"})
    with pytest.raises(ProtocolError) as caught:
        decode_message(old, decode_from_client)
    assert caught.value.code == "message-malformed"
    assert VERSION == 2


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_protocol_errors(raw: bytes) -> None:
    for decoder in (decode_from_client, decode_from_server):
        with pytest.raises(ProtocolError):
            decode_message(raw, decoder)


@given(
    st.sampled_from([*FROM_CLIENT, *FROM_SERVER]),
    st.integers(0, 500),
    st.integers(0, 4),
    st.binary(max_size=5),
)
def test_damaged_messages_raise_only_protocol_errors(
    message: Any, start: int, length: int, patch: bytes
) -> None:
    raw = encode_message(message)
    damaged = raw[:start] + patch + raw[start + length :]
    for decoder in (decode_from_client, decode_from_server):
        with contextlib.suppress(ProtocolError):
            decode_message(damaged, decoder)


def test_deeply_nested_bytes_are_refused() -> None:
    for opener in (b"\x91", b"\x81\xa1a"):
        with pytest.raises(ProtocolError):
            decode_message(opener * 20_000, decode_from_client)
