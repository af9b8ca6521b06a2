from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import cbor2
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mirrors import STATE_KEY, SUBJECT

from cloister.storage.keys import Secret
from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.block_cipher import (
    MirrorKind,
    SessionCipher,
    header_tag,
    key_name,
)
from cloister.storage.mirror.subject import ArraySpec, Subject

LAYOUT = ArrayLayout(
    [
        ArraySpec(name="a", shape=(2, 40), dtype="|u1"),
        ArraySpec(name="b", shape=(2, 40), dtype="|u1"),
    ],
    block_bytes=64,
)
SALT = b"s" * 32


def cipher(
    *,
    key: Secret = STATE_KEY,
    kind: MirrorKind = "state",
    subject: Subject = SUBJECT,
    layout: ArrayLayout = LAYOUT,
    salt: bytes = SALT,
) -> SessionCipher:
    return SessionCipher(key, kind=kind, subject=subject, layout=layout, salt=salt)


def sealed(content: bytes) -> bytearray:
    session = cipher()
    into = bytearray(len(content) + 16)
    context = session.context(1, completed=9, slot=2)
    session.seal_block(
        memoryview(content), memoryview(into), save=5, number=3, context=context
    )
    return into


# Where `sealed` puts a block.
PLACE = {"array": 1, "completed": 9, "slot": 2, "save": 5, "number": 3}


def opened(
    content: bytes | bytearray,
    session: SessionCipher,
    place: dict[str, int] = PLACE,
) -> bytes:
    into = bytearray(len(content) - 16)
    session.open_block(
        memoryview(content),
        memoryview(into),
        save=place["save"],
        number=place["number"],
        context=session.context(
            place["array"], completed=place["completed"], slot=place["slot"]
        ),
    )
    return bytes(into)


@given(st.binary(min_size=1, max_size=64))
def test_a_block_opens_in_its_place(content: bytes) -> None:
    assert opened(sealed(content), cipher()) == content


@given(st.data(), st.binary(min_size=1, max_size=64))
def test_any_flipped_bit_of_a_block_is_refused(
    data: st.DataObject, content: bytes
) -> None:
    flipped = sealed(content)
    bit = data.draw(st.integers(0, len(flipped) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        opened(flipped, cipher())


OTHER_LAYOUT = ArrayLayout(LAYOUT.arrays, block_bytes=65)


@pytest.mark.parametrize(
    "other",
    [
        cipher(key=Secret(bytes(32))),
        cipher(kind="parts"),
        cipher(subject=replace(SUBJECT, run_id="tea/run-8")),
        cipher(subject=replace(SUBJECT, plan_hash=b"q" * 32)),
        cipher(subject=replace(SUBJECT, role="worker")),
        cipher(subject=replace(SUBJECT, party="bob")),
        cipher(layout=OTHER_LAYOUT),
        cipher(salt=b"t" * 32),
    ],
)
def test_no_other_key_subject_layout_or_session_opens_a_block(
    other: SessionCipher,
) -> None:
    with pytest.raises(InvalidTag):
        opened(sealed(b"content"), other)


@pytest.mark.parametrize("part", sorted(PLACE))
def test_a_block_opens_in_no_other_place(part: str) -> None:
    with pytest.raises(InvalidTag):
        opened(sealed(b"content"), cipher(), PLACE | {part: 0})


def test_blocks_are_sealed_as_the_specification_says() -> None:
    whose = ["state", "tea/run-7", b"p" * 32, "server", "alice"]
    # HKDF-SHA256 (RFC 5869) for one block, by hand.
    info = cbor2.dumps(["cloister/mirror/1 session", *whose], canonical=True)
    extracted = hmac.digest(SALT, STATE_KEY.reveal(), hashlib.sha256)
    derived = hmac.digest(extracted, info + b"\x01", hashlib.sha256)
    nonce = (5).to_bytes(8, "big") + (3).to_bytes(4, "big")
    array = ["b", [2, 40], "|u1"]
    context = ["cloister/mirror/1 block", *whose, LAYOUT.digest, *array, 9, 2, 3]
    bound = cbor2.dumps(context, canonical=True)
    assert sealed(b"content") == AESGCM(derived).encrypt(nonce, b"content", bound)
    last = (5).to_bytes(8, "big") + b"\xff" * 4
    bound = cbor2.dumps(
        ["cloister/mirror/1 manifest", *whose, LAYOUT.digest, 2], canonical=True
    )
    manifest = cipher().seal_manifest(b"manifest", save=5, slot=2)
    assert manifest == AESGCM(derived).encrypt(last, b"manifest", bound)


def test_a_manifest_is_no_block() -> None:
    manifest = cipher().seal_manifest(b"content", save=5, slot=2)
    with pytest.raises(InvalidTag):
        opened(manifest, cipher(), PLACE | {"number": 2**32 - 1})
    with pytest.raises(InvalidTag):
        cipher().open_manifest(bytes(sealed(b"content")), save=5, slot=2)


def test_names_and_tags_are_of_one_key_and_one_kind() -> None:
    other = Secret(bytes(32))
    names = {key_name(k, kind) for k in (STATE_KEY, other) for kind in KINDS}
    tags = {header_tag(k, kind, b"h") for k in (STATE_KEY, other) for kind in KINDS}
    assert len(names) == len(tags) == 4
    assert header_tag(STATE_KEY, "state", b"h") != header_tag(STATE_KEY, "state", b"i")


KINDS: tuple[MirrorKind, ...] = ("state", "parts")


def test_a_cipher_shows_no_key() -> None:
    assert STATE_KEY.reveal().hex() not in repr(cipher())
    assert not hasattr(cipher(), "__dict__")
