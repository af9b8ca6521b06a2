from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.plan.plan import PlanHash
from cloister.ratls.challenge import (
    MAX_MESSAGE_BYTES,
    NONCE_BYTES,
    VERSION,
    Admission,
    Answer,
    Challenge,
    ClientProof,
    FromClient,
    FromServer,
    Hello,
    Nonce,
    Refusal,
    ServerProof,
    Transcript,
    decode_from_client,
    decode_from_server,
    decode_message,
    encode_message,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.warrant import Warrant, WarrantTerms

KEYS = [new_identity().tls_spki for _ in range(4)]
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
    ClientProof(quote=b"q"),
    REFUSAL,
]
FROM_SERVER: list[FromServer] = [
    Challenge(nonce=bytes(32), admission_key=KEYS[1], encryption_key=bytes(32)),
    ServerProof(warrant=WARRANT, quote=b"q"),
    Admission(certificate=b"c"),
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
            if message == REFUSAL and name in {"expected", "got"}:
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


TRANSCRIPT = Transcript(
    run_id="blobs/a",
    plan_hash=PlanHash(bytes(32)),
    client_role="worker",
    client_party="alice",
    server_party="aggregator",
    client_nonce=Nonce(b"c" * 32),
    server_nonce=Nonce(b"s" * 32),
    client_key=KEYS[0],
    server_key=KEYS[1],
    admission_key=KEYS[2],
    client_encryption_key=b"x" * 32,
    server_encryption_key=b"y" * 32,
)
OTHERS: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": b"p" * 32,
    "client_role": "server",
    "client_party": "bob",
    "server_party": "other",
    "client_nonce": b"C" * 32,
    "server_nonce": b"S" * 32,
    "client_key": KEYS[3],
    "server_key": KEYS[3],
    "admission_key": KEYS[3],
    "client_encryption_key": b"X" * 32,
    "server_encryption_key": b"Y" * 32,
}
OF_THE_OTHER_SIDE = {
    "client": {"server_party", "server_encryption_key"},
    "server": {"client_role", "client_party", "client_encryption_key"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_signature_covers_everything_said(name: str) -> None:
    other = replace(TRANSCRIPT, **{name: OTHERS[name]})
    assert other.signed_bytes() != TRANSCRIPT.signed_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_evidence_binds_everything_said_about_its_own_side(name: str) -> None:
    other = replace(TRANSCRIPT, **{name: OTHERS[name]})
    for side, own, changed in (
        ("client", TRANSCRIPT.client_report_data(), other.client_report_data()),
        ("server", TRANSCRIPT.server_report_data(), other.server_report_data()),
    ):
        assert (own == changed) == (name in OF_THE_OTHER_SIDE[side])


def test_both_sides_evidence_differs_even_for_one_party_and_key() -> None:
    mirrored = replace(
        TRANSCRIPT,
        client_party="aggregator",
        client_encryption_key=TRANSCRIPT.server_encryption_key,
    )
    assert mirrored.client_report_data() != mirrored.server_report_data()


def test_exchanged_values_make_another_transcript() -> None:
    exchanged = replace(
        TRANSCRIPT,
        client_nonce=TRANSCRIPT.server_nonce,
        server_nonce=TRANSCRIPT.client_nonce,
        client_key=TRANSCRIPT.server_key,
        server_key=TRANSCRIPT.client_key,
    )
    assert exchanged.signed_bytes() != TRANSCRIPT.signed_bytes()
    assert exchanged.client_report_data() != TRANSCRIPT.client_report_data()


def test_challenge_evidence_has_no_zeros_where_a_certificates_has() -> None:
    for data in (TRANSCRIPT.client_report_data(), TRANSCRIPT.server_report_data()):
        assert len(data) == 64
        assert data[32:] != bytes(32)
