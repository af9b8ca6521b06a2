from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import StorageError
from cloister.storage import dsse
from cloister.storage.dsse import (
    LINE_START,
    MAX_LINE_BYTES,
    PAYLOAD_TYPE,
    Envelope,
    encode_envelope,
    pae,
    parse_envelope,
)

# The example of the specification, protocol.md, "Test Vectors", on one line.
EXAMPLE = (
    b'{"payload":"aGVsbG8gd29ybGQ=","payloadType":"http://example.com/HelloWorld",'
    b'"signatures":[{"keyid":"66301bbf","sig":"A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+'
    b'O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="}]}'
)
EXAMPLE_KEY = ec.EllipticCurvePublicNumbers(
    46950820868899156662930047687818585632848591499744589407958293238635476079160,
    5640078356564379163099075877009565129882514886557779369047442380624545832820,
    ec.SECP256R1(),
).public_key()
LINE = encode_envelope(
    Envelope(payload=b'{"seq":0}', keyid="ed25519:00", signature=b"signature?")
)

texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'),
    min_size=1,
    max_size=256,
)
envelopes = st.builds(
    Envelope,
    payload=st.binary(max_size=200),
    payload_type=texts,
    keyid=texts,
    signature=st.binary(min_size=1, max_size=80),
)


def refused(unverified: bytes) -> StorageError:
    with pytest.raises(StorageError) as caught:
        parse_envelope(unverified)
    assert caught.value.code == "audit-malformed"
    return caught.value


def changed(**members: object) -> bytes:
    return json.dumps(json.loads(LINE) | members, separators=(",", ":")).encode()


def test_the_example_of_the_specification_is_read_and_its_signature_holds() -> None:
    envelope = parse_envelope(EXAMPLE)
    assert envelope.payload == b"hello world"
    assert envelope.signed == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    r, s = envelope.signature[:32], envelope.signature[32:]
    EXAMPLE_KEY.verify(
        encode_dss_signature(int.from_bytes(r), int.from_bytes(s)),
        envelope.signed,
        ec.ECDSA(SHA256()),
    )


@given(envelopes)
def test_what_is_written_is_read_and_has_one_spelling(envelope: Envelope) -> None:
    line = encode_envelope(envelope)
    assert b"\n" not in line
    assert line.startswith(LINE_START)
    assert parse_envelope(line) == envelope
    # For whoever has another reader.
    members = json.loads(line)
    assert list(members) == ["payload", "payloadType", "signatures"]
    assert base64.b64decode(members["payload"], validate=True) == envelope.payload


@given(st.binary(max_size=60), texts, st.binary(max_size=60), texts)
def test_no_two_payloads_are_signed_as_the_same_bytes(
    payload: bytes, payload_type: str, other: bytes, other_type: str
) -> None:
    same = (payload, payload_type) == (other, other_type)
    encoded = pae(payload, payload_type=payload_type)
    assert (encoded == pae(other, payload_type=other_type)) == same


@given(st.integers(0, len(LINE) * 8 - 1))
def test_a_flipped_bit_is_refused_or_another_envelope(bit: int) -> None:
    line = bytearray(LINE)
    line[bit // 8] ^= 1 << bit % 8
    try:
        envelope = parse_envelope(bytes(line))
    except StorageError:
        return
    assert envelope != parse_envelope(LINE)


@given(st.integers(0, len(LINE) - 1))
def test_a_part_of_a_line_is_refused(kept: int) -> None:
    refused(LINE[:kept])


@given(st.binary(max_size=100))
def test_anything_else_is_refused(line: bytes) -> None:
    refused(line)


@pytest.mark.parametrize(
    "line",
    [
        LINE + b"\n",
        b" " + LINE,
        LINE.replace(b":", b": ", 1),
        LINE.replace(b"payload", b"\\u0070ayload", 1),
        # Repeated: readers differ in which one they take.
        LINE.replace(b"{", b'{"payload":"QQ==",', 1),
        changed(payloadUtf8="{}"),
        changed(signatures=[]),
        changed(signatures=[{"keyid": "a", "sig": "QQ=="}] * 2),
        changed(signatures=[{"sig": "QQ=="}]),
        changed(signatures=[{"keyid": "a", "sig": "QQ==", "cert": ""}]),
        changed(signatures=[{"keyid": "a", "sig": ""}]),
        changed(signatures=[{"keyid": "", "sig": "QQ=="}]),
        changed(signatures=[{"keyid": "a\nb", "sig": "QQ=="}]),
        changed(signatures=[{"keyid": "a" * 257, "sig": "QQ=="}]),
        changed(signatures=[{"keyid": 'a"b', "sig": "QQ=="}]),
        changed(payload="QR=="),
        changed(payload="QQ"),
        changed(payload="-_8="),
        changed(payload=None),
        changed(payloadType="text/plain; charset=utf-8"),
        changed(payloadType=1),
        b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xff",
        b"",
        b"null",
    ],
    ids=lambda line: line[:40].decode("latin-1"),
)
def test_another_spelling_or_form_is_refused(line: bytes) -> None:
    refused(line)


def test_a_line_that_is_too_long_is_refused_before_it_is_read() -> None:
    assert "16777216" in refused(b" " * (MAX_LINE_BYTES + 1)).got


def test_an_envelope_that_is_too_large_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dsse, "MAX_LINE_BYTES", 400)
    envelope = Envelope(payload=bytes(300), keyid="a", signature=b"b")
    with pytest.raises(StorageError) as caught:
        encode_envelope(envelope)
    assert caught.value.code == "audit-too-large"


@pytest.mark.parametrize(
    ("keyid", "payload_type", "signature"),
    [
        ("", PAYLOAD_TYPE, b"a"),
        ("a b", PAYLOAD_TYPE, b"a"),
        ("a", "", b"a"),
        ("a", PAYLOAD_TYPE, b""),
        ("a", PAYLOAD_TYPE, bytes(513)),
    ],
)
def test_an_envelope_that_could_not_be_read_again_is_a_bug(
    keyid: str, payload_type: str, signature: bytes
) -> None:
    with pytest.raises(ValueError, match=r"must be|bytes"):
        Envelope(
            payload=b"", payload_type=payload_type, keyid=keyid, signature=signature
        )
