from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cloister.storage.keys import Secret
from cloister.storage.record_cipher import DATASET_ID_BYTES, TAG_BYTES, RecordCipher
from cloister.storage.records import SplitName

KEY = Secret(bytes(range(32)))
DATASET = b"d" * DATASET_ID_BYTES
LAYOUT = b"l" * 32


def cipher(
    *, key: Secret = KEY, dataset: bytes = DATASET, layout: bytes = LAYOUT
) -> RecordCipher:
    return RecordCipher(key, dataset_id=dataset, layout=layout)


def opened(
    sealed: bytes,
    *,
    by: RecordCipher | None = None,
    split: SplitName = "train",
    index: int = 5,
) -> bytes:
    into = bytearray(b"?" * (len(sealed) - TAG_BYTES))
    try:
        (by or cipher()).open_into(sealed, memoryview(into), split=split, index=index)
    except InvalidTag:
        assert not any(into), "plaintext of an unauthentic record was left"
        raise
    return bytes(into)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2**53))
def test_a_record_opens_in_its_place(record: bytes, index: int) -> None:
    sealed = cipher().seal(record, split="held-out", index=index)
    assert len(sealed) == len(record) + TAG_BYTES
    assert opened(sealed, split="held-out", index=index) == record


@given(st.data(), st.binary(min_size=1, max_size=40))
def test_any_flipped_bit_is_refused_and_leaves_nothing(
    data: st.DataObject, record: bytes
) -> None:
    sealed = bytearray(cipher().seal(record, split="train", index=5))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTag):
        opened(bytes(sealed))


@pytest.mark.parametrize(
    ("by", "split", "index"),
    [
        (cipher(key=Secret(bytes(32))), "train", 5),
        (cipher(dataset=b"e" * DATASET_ID_BYTES), "train", 5),
        (cipher(layout=b"m" * 32), "train", 5),
        (cipher(), "held-out", 5),
        (cipher(), "train", 4),
        (cipher(), "train", 5 + 2**32),
    ],
)
def test_no_other_key_data_set_layout_split_or_index_opens_it(
    by: RecordCipher, split: SplitName, index: int
) -> None:
    sealed = cipher().seal(b"record", split="train", index=5)
    with pytest.raises(InvalidTag):
        opened(sealed, by=by, split=split, index=index)


def test_equal_records_look_different_in_every_place() -> None:
    made = {
        by.seal(b"the same record", split=split, index=index)
        for by in (cipher(), cipher(dataset=b"e" * DATASET_ID_BYTES))
        for split in ("train", "held-out")
        for index in range(3)
    }
    bodies = {sealed[:-TAG_BYTES] for sealed in made}
    assert len(bodies) == 12


def test_records_are_sealed_as_the_specification_says() -> None:
    # HKDF-SHA256 (RFC 5869) for one block, by hand.
    extracted = hmac.digest(DATASET, KEY.reveal(), hashlib.sha256)
    derived = hmac.digest(extracted, b"cloister/data/1 key\x01", hashlib.sha256)
    nonce = b"\x02\0\0\0" + (77).to_bytes(8, "big")
    context = b"cloister/data/1 record\0" + DATASET + LAYOUT + nonce
    assert cipher().seal(b"record", split="held-out", index=77) == AESGCM(
        derived
    ).encrypt(nonce, b"record", context)


def test_a_cipher_shows_no_key() -> None:
    assert KEY.reveal().hex() not in repr(cipher())
    assert not hasattr(cipher(), "__dict__")
