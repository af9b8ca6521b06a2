from __future__ import annotations

import hashlib
from dataclasses import replace

import cbor2
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mirrors import SPECS, STATE_KEY, SUBJECT

from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.block_cipher import SessionCipher
from cloister.storage.mirror.manifest import (
    MAX_COUNTER_NAME,
    MAX_COUNTERS,
    Bound,
    Manifest,
    checked_counters,
    digest_of,
    encode,
    salt_of,
    seal,
    unseal,
)

BOUND = Bound(kind="state", subject=SUBJECT, layout=ArrayLayout(SPECS, block_bytes=64))
BLOCKS = len(BOUND.layout.blocks)
CIPHER = SessionCipher(
    STATE_KEY, kind="state", subject=SUBJECT, layout=BOUND.layout, salt=b"s" * 32
)
MANIFEST = Manifest(
    slot=1,
    sequence=8,
    completed=70,
    counters={"marks": 5},
    salt=b"s" * 32,
    save=3,
    saves=b"",
    tags=bytes(range(16 * BLOCKS)),
)
NUMBERS = st.integers(0, 2**63)
COUNTERS = st.dictionaries(
    st.text("abc-", min_size=1, max_size=MAX_COUNTER_NAME),
    st.integers(0, 2**64 - 1),
    max_size=MAX_COUNTERS,
)


@given(sequence=NUMBERS, completed=NUMBERS, save=NUMBERS, counters=COUNTERS)
def test_what_is_sealed_is_opened_and_is_always_as_long(
    sequence: int, completed: int, save: int, counters: dict[str, int]
) -> None:
    manifest = replace(
        MANIFEST,
        sequence=sequence,
        completed=completed,
        save=save,
        counters=checked_counters(counters),
    )
    lying = seal(manifest, BOUND, CIPHER, room=BOUND.room)
    assert len(lying) == BOUND.room
    assert BOUND.room % 4096 == 0
    assert salt_of(lying) == CIPHER.salt
    assert unseal(lying, BOUND, CIPHER, slot=1) == manifest


@given(st.integers(0, BOUND.room * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    lying = bytearray(seal(MANIFEST, BOUND, CIPHER, room=BOUND.room))
    lying[bit // 8] ^= 1 << bit % 8
    salt = salt_of(bytes(lying))
    cipher = SessionCipher(
        STATE_KEY, kind="state", subject=SUBJECT, layout=BOUND.layout, salt=salt
    )
    with pytest.raises(InvalidTag):
        unseal(bytes(lying), BOUND, cipher, slot=1)


@pytest.mark.parametrize(
    "change",
    [
        {"slot": 2},
        {"tags": b""},
        {"tags": bytes(16 * BLOCKS + 16)},
        {"saves": b"s"},
        {"salt": b"t" * 32},
        {"completed": -1},
        {"sequence": 2**64},
        {"counters": {"": 1}},
        {"counters": {"c": -1}},
        {"counters": []},
        {"tags": [1]},
        {"completed": "70"},
    ],
)
def test_a_manifest_that_lies_about_itself_is_refused_though_it_is_authentic(
    change: dict[str, object],
) -> None:
    form = cbor2.loads(encode(MANIFEST, BOUND))
    names = ["slot", "sequence", "completed", "counters", "salt", "save", "saves"]
    for name, value in change.items():
        form[4 + [*names, "tags"].index(name)] = value
    for content in (cbor2.dumps(form, canonical=True), b"\xff", b"", b"\x80"):
        plain = len(content).to_bytes(4, "big") + content
        padded = plain.ljust(BOUND.room - 56, b"\0")
        sealed = CIPHER.seal_manifest(padded, save=3, slot=1)
        with pytest.raises(InvalidTag):
            unseal(b"s" * 32 + (3).to_bytes(8, "big") + sealed, BOUND, CIPHER, slot=1)


def test_another_spelling_is_refused() -> None:
    form = cbor2.loads(encode(MANIFEST, BOUND))
    for other in (form[:-1], [*form, 1], ["cloister/mirror/2 manifest", *form[1:]]):
        content = cbor2.dumps(other, canonical=True)
        padded = (len(content).to_bytes(4, "big") + content).ljust(BOUND.room - 56)
        sealed = CIPHER.seal_manifest(padded, save=3, slot=1)
        lying = b"s" * 32 + (3).to_bytes(8, "big") + sealed
        with pytest.raises(InvalidTag):
            unseal(lying, BOUND, CIPHER, slot=1)


def test_the_digest_is_as_the_specification_says() -> None:
    form = [
        "cloister/mirror/1 manifest",
        "state",
        ["tea/run-7", b"p" * 32, "server", "alice"],
        BOUND.layout.digest,
        1,
        8,
        70,
        {"marks": 5},
        b"s" * 32,
        3,
        b"",
        bytes(range(16 * BLOCKS)),
    ]
    expected = hashlib.sha256(cbor2.dumps(form, canonical=True)).digest()
    assert digest_of(MANIFEST, BOUND) == expected


@pytest.mark.parametrize(
    "counters",
    [
        {"": 1},
        {"n" * (MAX_COUNTER_NAME + 1): 1},
        {"é": 1},
        {"n": -1},
        {"n": 2**64},
        {f"n{n}": 1 for n in range(MAX_COUNTERS + 1)},
    ],
)
def test_counters_that_have_no_room_are_bugs_of_the_caller(
    counters: dict[str, int],
) -> None:
    with pytest.raises(RuntimeError):
        checked_counters(counters)
