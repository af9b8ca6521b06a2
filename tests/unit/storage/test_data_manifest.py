from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.sealed_sets import DATA_KEY, SCHEMA, Owner

from cloister.errors import StorageError
from cloister.storage.data_manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    check_describable,
    parse_payload,
    payload_of,
)
from cloister.storage.dsse import Envelope, encode_envelope, pae
from cloister.storage.keys import key_id
from cloister.storage.manifest_signature import (
    PAYLOAD_TYPE,
    SignedManifest,
    sign_manifest,
    verify_manifest,
)
from cloister.storage.records import Field, Schema

OWNER, STRANGER = Owner(), Owner()
MANIFEST = Manifest(
    dataset_id=bytes(range(32)),
    schema=SCHEMA,
    train=7,
    held_out=4,
    key=key_id("data", DATA_KEY),
    owner=OWNER.owner,
    source="made",
)
LINE = sign_manifest(MANIFEST, signer=OWNER)

Form = dict[str, object]


def signed(payload: bytes, *, kind: str = PAYLOAD_TYPE, by: Owner = OWNER) -> bytes:
    """Returns a line that the owner signed, whatever it says."""
    return encode_envelope(
        Envelope(
            payload=payload,
            payload_type=kind,
            keyid=OWNER.owner,
            signature=by.sign(pae(payload, payload_type=kind)),
        )
    )


def code_of(line: bytes) -> str:
    with pytest.raises(StorageError) as caught:
        verify_manifest(line)
    assert str(caught.value).isprintable()
    return caught.value.code


def test_what_is_signed_is_read_back() -> None:
    read = verify_manifest(LINE)
    assert read.manifest == MANIFEST
    assert read.digest.startswith("sha256:")
    assert (read.manifest.total, read.manifest.records("held-out")) == (11, 4)


def test_the_manifest_is_one_line_in_the_form_of_the_specification() -> None:
    payload = json.loads(base64.b64decode(json.loads(LINE)["payload"]))
    assert list(payload) == [
        "format",
        "id",
        "schema",
        "splits",
        "key",
        "owner",
        "source",
    ]
    assert payload["splits"] == {"train": 7, "held-out": 4}
    assert payload["schema"][0] == {
        "name": "label",
        "dtype": "uint8",
        "shape": [],
        "below": 10,
    }
    assert b"\n" not in LINE


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_id": bytes(32)},
        {"train": 6},
        {"held_out": 5},
        {"key": "sha256:" + "0" * 64},
        {"source": "cifar-10"},
        {"schema": Schema(fields=SCHEMA.fields[:2])},
        {"schema": Schema(fields=(replace(SCHEMA.fields[0], below=9),))},
    ],
)
def test_everything_that_a_manifest_says_is_in_its_digest(
    change: dict[str, object],
) -> None:
    other = replace(MANIFEST, **change)  # type: ignore[arg-type]  # by name
    line = sign_manifest(other, signer=OWNER)
    assert verify_manifest(line).digest != verify_manifest(LINE).digest


def test_nobody_signs_for_another() -> None:
    with pytest.raises(RuntimeError, match="owner"):
        sign_manifest(MANIFEST, signer=STRANGER)
    assert code_of(signed(payload_of(MANIFEST), by=STRANGER)) == "data-signature"


def test_an_envelope_that_names_another_key_is_refused() -> None:
    payload = payload_of(replace(MANIFEST, owner=STRANGER.owner))
    assert code_of(signed(payload)) == "data-signature"


def test_an_owner_that_is_no_point_of_the_curve_is_refused() -> None:
    payload = payload_of(replace(MANIFEST, owner="ed25519:" + "02" + "0" * 60 + "ff"))
    line = encode_envelope(
        Envelope(
            payload=payload,
            payload_type=PAYLOAD_TYPE,
            keyid="ed25519:" + "02" + "0" * 60 + "ff",
            signature=bytes(64),
        )
    )
    assert code_of(line) == "data-signature"


def test_a_signed_record_of_another_kind_is_no_manifest() -> None:
    line = signed(payload_of(MANIFEST), kind="application/vnd.cloister.audit.v1+json")
    assert code_of(line) == "data-malformed"


def changed(change: Callable[[Form], object]) -> bytes:
    form = json.loads(payload_of(MANIFEST))
    change(form)
    return json.dumps(form, separators=(",", ":")).encode()


def field_with(**values: object) -> Callable[[Form], object]:
    return lambda form: form.update(
        schema=[{"name": "x", "dtype": "uint8", "shape": [], "below": None, **values}]
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"\xff",
        b"[" * 100_000,
        payload_of(MANIFEST) + b" ",
        payload_of(MANIFEST).replace(b'"made"', b'"m\\u0061de"'),
        changed(lambda form: form.update(format=2)),
        changed(lambda form: form.pop("source")),
        changed(lambda form: form.update({"\x1b[2J": 1})),
        changed(lambda form: form.update(id="00" * 31)),
        changed(lambda form: form.update(id="AA" * 32)),
        changed(lambda form: form.update(splits={"train": -1, "held-out": 0})),
        changed(lambda form: form.update(splits={"train": 2**64, "held-out": 0})),
        changed(lambda form: form.update(splits={"train": 1.0, "held-out": 0})),
        changed(lambda form: form.update(owner="ed25519:" + "0" * 62)),
        changed(lambda form: form.update(schema=[])),
        changed(field_with(name="\x1b[2J")),
        changed(field_with(dtype="object0")),
        changed(field_with(dtype="v16")),
        changed(field_with(shape=[0])),
        changed(field_with(shape=[2**30] * 16)),
        changed(field_with(shape=[1] * 17)),
        changed(field_with(below=0)),
        changed(field_with(below=2**63)),
    ],
)
def test_what_is_no_manifest_is_refused_even_signed(payload: bytes) -> None:
    assert code_of(signed(payload)) == "data-malformed"


def test_shapes_that_would_take_long_to_multiply_are_refused_at_once() -> None:
    payload = changed(field_with(shape=[2**30] * 60_000))
    began = time.perf_counter()
    assert code_of(signed(payload)) == "data-malformed"
    assert time.perf_counter() - began < 1


def test_a_line_beyond_the_limit_is_refused_unread() -> None:
    line = b"[" * (MAX_MANIFEST_BYTES + 1)
    assert code_of(line) == "data-malformed"


@given(st.binary(max_size=300))
def test_any_payload_ends_in_a_manifest_or_our_error(payload: bytes) -> None:
    with contextlib.suppress(StorageError):
        parse_payload(payload)


@given(st.data())
def test_any_flipped_bit_of_a_signed_manifest_is_refused(data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, len(LINE) * 8 - 1))
    line = bytearray(LINE)
    line[bit // 8] ^= 1 << bit % 8
    assert code_of(bytes(line)) in {"data-malformed", "data-signature"}


@given(st.integers(0, len(LINE) - 1))
def test_any_prefix_of_a_signed_manifest_is_refused(length: int) -> None:
    assert code_of(LINE[:length]) == "data-malformed"


def test_more_fields_than_a_manifest_has_room_for_are_refused_before_sealing() -> None:
    def schema(count: int) -> Schema:
        return Schema(
            fields=tuple(
                Field(name=f"field-{n:05}-{'x' * 100}", dtype="int8")
                for n in range(count)
            )
        )

    check_describable(schema(4000), source="arrays")
    with pytest.raises(StorageError) as caught:
        check_describable(schema(5000), source="arrays")
    assert caught.value.code == "data-too-large"
    # What is describable can be written, whatever the bounds turn out to be.
    made = replace(MANIFEST, schema=schema(4000))
    line = sign_manifest(made, signer=OWNER)
    assert len(line) <= MAX_MANIFEST_BYTES
    assert isinstance(verify_manifest(line), SignedManifest)
