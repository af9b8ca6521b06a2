from __future__ import annotations

import contextlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.messages import (
    MAX_HEADER_BYTES,
    MAX_METRICS,
    EvaluationReport,
    FinalReport,
    Finished,
    Header,
    ModelHeader,
    ModelRequest,
    UpdateHeader,
    decode_header,
    encode_header,
)

DIGEST = "0" * 64
REPORT = EvaluationReport(examples=3, sums={"accuracy": 2.0, "loss": 0.5})
HEADERS: list[Header] = [
    REPORT,
    ModelRequest(layout=DIGEST),
    ModelHeader(
        round=1, layout=DIGEST, evaluate=True, final=False, audit_head=bytes(32)
    ),
    UpdateHeader(
        round=2, layout=DIGEST, examples=16, loss_sum=1.5, countersignature=b"signed"
    ),
    UpdateHeader(
        round=2,
        layout=DIGEST,
        examples=16,
        loss_sum=1.5,
        countersignature=b"signed",
        evaluation=REPORT,
    ),
    UpdateHeader(
        round=2,
        layout=DIGEST,
        examples=16,
        loss_sum=1.5,
        countersignature=b"signed",
        first_chunk=b"a chunk",
    ),
    FinalReport(evaluation=REPORT, countersignature=b"signed"),
    Finished(),
    ModelHeader(
        round=1,
        layout=DIGEST,
        evaluate=False,
        final=True,
        audit_head=bytes(32),
        state=bytes(32),
    ),
]
KINDS = sorted({type(header) for header in HEADERS}, key=lambda kind: kind.__name__)


def fields_of(header: Header) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(header, builtin_types=(bytes,))
    return fields


def refusal(raw: bytes, kind: type[Header]) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_header(raw, kind)
    return caught.value


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_reads_as_written_and_as_nothing_else(header: Header) -> None:
    raw = encode_header(header)
    assert decode_header(raw, type(header)) == header
    for kind in KINDS:
        if kind is not type(header):
            error = refusal(raw, kind)
            assert error.code == "header-malformed"
            assert error.expected == kind.__name__


@pytest.mark.parametrize("header", HEADERS)
def test_every_prefix_and_every_tail_is_refused(header: Header) -> None:
    raw = encode_header(header)
    for length in range(len(raw)):
        refusal(raw[:length], type(header))
    refusal(raw + b"\0", type(header))


@pytest.mark.parametrize("header", HEADERS)
def test_an_extra_field_is_refused(header: Header) -> None:
    raw = msgspec.msgpack.encode({**fields_of(header), "party": "bob"})
    assert "party" in refusal(raw, type(header)).got


@pytest.mark.parametrize("header", HEADERS)
def test_a_missing_field_is_refused(header: Header) -> None:
    fields = fields_of(header)
    optional = {"at_once", "evaluation", "first_chunk", "state", "type"}
    for name in fields.keys() - optional:
        rest = {key: value for key, value in fields.items() if key != name}
        refusal(msgspec.msgpack.encode(rest), type(header))


@pytest.mark.parametrize(
    ("header", "change"),
    [
        (HEADERS[1], {"layout": "0" * 63}),
        (HEADERS[2], {"round": 0}),
        (HEADERS[2], {"round": 2**31 + 1}),
        (HEADERS[2], {"round": -1}),
        (HEADERS[2], {"final": 0}),
        (HEADERS[2], {"state": bytes(31)}),
        (HEADERS[2], {"state": bytes(33)}),
        (HEADERS[2], {"state": DIGEST}),
        (HEADERS[2], {"audit_head": bytes(31)}),
        (HEADERS[2], {"audit_head": bytes(33)}),
        (HEADERS[2], {"audit_head": None}),
        (HEADERS[3], {"countersignature": bytes(81)}),
        (HEADERS[3], {"countersignature": None}),
        (HEADERS[5], {"countersignature": bytes(81)}),
        (HEADERS[3], {"examples": 0}),
        (HEADERS[3], {"examples": 2**40 + 1}),
        (HEADERS[3], {"examples": 1.5}),
        (HEADERS[3], {"loss_sum": "1"}),
        (HEADERS[0], {"sums": {"m" * 65: 1.0}}),
        (HEADERS[0], {"sums": {f"m{i}": 1.0 for i in range(MAX_METRICS + 1)}}),
        (HEADERS[0], {"sums": {"m": None}}),
    ],
)
def test_a_value_out_of_bounds_is_refused(
    header: Header, change: dict[str, Any]
) -> None:
    raw = msgspec.msgpack.encode({**fields_of(header), **change})
    refusal(raw, type(header))


def test_a_header_is_printed_without_the_chunk_that_it_brings() -> None:
    for header in (HEADERS[2], HEADERS[3]):
        bringing = msgspec.structs.replace(header, first_chunk=b"a chunk")
        assert "a chunk" not in repr(bringing)


def test_an_oversized_header_is_refused_before_it_is_parsed() -> None:
    for kind in KINDS:
        assert refusal(bytes(MAX_HEADER_BYTES + 1), kind).code == "header-size"


def test_numbers_that_are_none_pass_here_to_be_refused_by_name_later() -> None:
    header = UpdateHeader(
        round=1, layout=DIGEST, examples=1, loss_sum=math.nan, countersignature=b""
    )
    assert math.isnan(decode_header(encode_header(header), UpdateHeader).loss_sum)


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_random_bytes_raise_only_protocol_errors(
    raw: bytes, kind: type[Header]
) -> None:
    refusal(raw, kind)


@given(
    st.sampled_from(HEADERS),
    st.integers(0, 200),
    st.integers(0, 4),
    st.binary(max_size=5),
)
def test_damaged_headers_raise_only_protocol_errors(
    header: Header, start: int, length: int, patch: bytes
) -> None:
    raw = encode_header(header)
    damaged = raw[:start] + patch + raw[start + length :]
    for kind in KINDS:
        with contextlib.suppress(ProtocolError):
            decode_header(damaged, kind)
