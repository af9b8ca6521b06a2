from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.mirrors import SPECS, STATE_KEY, SUBJECT

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.block_cipher import header_tag
from cloister.storage.mirror.manifest import Bound
from cloister.storage.mirror.mirror_header import Title

BOUND = Bound(kind="state", subject=SUBJECT, layout=ArrayLayout(SPECS, block_bytes=64))
TITLE = Title(bound=BOUND, slots=2)
HEADER = TITLE.write(STATE_KEY)
PATH = Path("state")


def code_of(header: bytes, *, title: Title = TITLE, key: Secret = STATE_KEY) -> str:
    with pytest.raises(StorageError) as caught:
        title.check(header, key, path=PATH)
    assert str(caught.value).isprintable()
    return caught.value.code


def test_its_own_header_is_taken_and_small() -> None:
    TITLE.check(HEADER, STATE_KEY, path=PATH)
    assert len(HEADER) < 1024


@given(st.integers(0, len(HEADER) * 8 - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    flipped = bytearray(HEADER)
    flipped[bit // 8] ^= 1 << bit % 8
    assert code_of(bytes(flipped)).startswith("mirror-")


@given(st.binary(max_size=64))
def test_anything_else_is_refused(header: bytes) -> None:
    assert code_of(header).startswith("mirror-")


def forged(*changes: tuple[int, object], key: Secret = STATE_KEY) -> bytes:
    label, body, _ = cbor2.loads(HEADER)
    form = cbor2.loads(body)
    for place, value in changes:
        form[place] = value
    body = cbor2.dumps(form, canonical=True)
    tag = header_tag(key, "state", body)
    return cbor2.dumps([label, body, tag], canonical=True)


def test_each_reason_has_its_name() -> None:
    other = Secret(bytes(32))
    assert code_of(HEADER, key=other) == "mirror-key"
    parts = replace(TITLE, bound=replace(BOUND, kind="parts"))
    assert code_of(HEADER, title=parts) == "mirror-foreign"
    bob = replace(TITLE, bound=replace(BOUND, subject=replace(SUBJECT, party="bob")))
    assert code_of(HEADER, title=bob) == "mirror-foreign"
    assert code_of(HEADER, title=replace(TITLE, slots=3)) == "mirror-foreign"
    label, body, tag = cbor2.loads(HEADER)
    assert label == "cloister/mirror/1"
    newer = cbor2.dumps(["cloister/mirror/2", body, tag], canonical=True)
    assert code_of(newer) == "mirror-version"


def test_who_lacks_the_key_makes_no_header_that_is_taken() -> None:
    # A layout of its own, under the right key's name, which everybody can read.
    assert code_of(forged((2, [bytes(32), 2]), key=Secret(bytes(32)))) == (
        "mirror-damaged"
    )
    # As if the key were the other one's.
    assert code_of(forged((3, bytes(16)))) == "mirror-key"


def test_what_a_foreign_header_says_is_shown_without_its_tricks() -> None:
    whose = ["\x1b[31m" * 200, b"p" * 32, 3, None]
    assert code_of(forged((1, whose))) == "mirror-foreign"
    assert code_of(forged((1, {"a": 1}))) == "mirror-foreign"
    with pytest.raises(StorageError) as caught:
        TITLE.check(forged((1, whose)), STATE_KEY, path=PATH)
    assert len(caught.value.got) < 300
