from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.meeting import Meeting, transcript_of
from tests.support.refusals import code_of

from cloister.ratls import said as kept
from cloister.ratls.identity import SPKI_BYTES, new_identity
from cloister.ratls.said import Said
from cloister.ratls.transcript import Transcript


@pytest.fixture
def transcript(meeting: Meeting) -> Transcript:
    meeting.challenge()
    return transcript_of(meeting.server)


def with_custodian(words: Said) -> Said:
    return msgspec.structs.replace(
        words,
        server_role="custodian",
        server_party=words.client_party,
        admission_key=b"",
        server_encryption_key=b"",
    )


def test_what_was_said_is_kept_and_read_again(transcript: Transcript) -> None:
    words = kept.said(transcript)
    assert kept.transcript_of(words) == transcript
    raw = msgspec.json.encode(words)
    assert kept.transcript_of(msgspec.json.decode(raw, type=Said)) == transcript


def test_a_custodian_has_neither_admission_nor_encryption_key(
    transcript: Transcript,
) -> None:
    words = with_custodian(kept.said(transcript))
    assert kept.said(kept.transcript_of(words)) == words
    for name in ("admission_key", "server_encryption_key"):
        both = msgspec.structs.replace(words, **{name: getattr(transcript, name)})
        assert code_of(kept.transcript_of, both) == "testimony-malformed"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("client_key", bytes(SPKI_BYTES), "tls-key-invalid"),
        ("server_key", bytes(SPKI_BYTES), "tls-key-invalid"),
        ("admission_key", bytes(SPKI_BYTES), "tls-key-invalid"),
        ("admission_key", b"", "tls-key-invalid"),
        ("client_encryption_key", bytes(31), "testimony-malformed"),
        ("client_encryption_key", b"", "testimony-malformed"),
        ("server_encryption_key", bytes(33), "testimony-malformed"),
        ("server_encryption_key", b"", "testimony-malformed"),
    ],
)
def test_keys_that_are_none_are_refused(
    transcript: Transcript, name: str, value: bytes, code: str
) -> None:
    words = msgspec.structs.replace(kept.said(transcript), **{name: value})
    assert code_of(kept.transcript_of, words) == code


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_id", "no run"),
        ("client_party", "No Name"),
        ("client_role", "guest"),
        ("server_role", "worker"),
        ("plan_hash", bytes(31)),
        ("client_nonce", bytes(33)),
        ("server_nonce", b""),
        ("client_key", bytes(SPKI_BYTES - 1)),
        ("server_key", bytes(SPKI_BYTES + 1)),
        ("admission_key", bytes(SPKI_BYTES + 1)),
        ("client_encryption_key", bytes(31)),
        ("server_encryption_key", bytes(33)),
        ("more", 1),
    ],
)
def test_what_no_transcript_has_is_not_even_read(
    transcript: Transcript, name: str, value: Any
) -> None:
    words = {**msgspec.structs.asdict(kept.said(transcript)), name: value}
    raw = msgspec.json.encode(words)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Said)


KEY = new_identity().tls_spki


@given(raw=st.binary(max_size=2 * SPKI_BYTES) | st.just(bytes(KEY)))
def test_bytes_of_any_kind_are_a_key_or_our_error(raw: bytes) -> None:
    words = Said(
        run_id="blobs/a",
        plan_hash=bytes(32),
        client_role="worker",
        client_party="alice",
        server_role="custodian",
        server_party="alice",
        client_nonce=bytes(32),
        server_nonce=bytes(32),
        client_key=raw,
        server_key=KEY,
        admission_key=b"",
        client_encryption_key=bytes(32),
        server_encryption_key=b"",
    )
    if raw == KEY:
        assert kept.transcript_of(words).client_key == KEY
    else:
        assert code_of(kept.transcript_of, words) == "tls-key-invalid"
