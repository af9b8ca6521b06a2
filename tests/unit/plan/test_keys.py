from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.plan.keys import format_party_key, parse_party_key


def test_a_key_reads_as_written() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert parse_party_key(format_party_key(key)) == key.public_key()


def test_a_private_key_shows_only_its_public_half() -> None:
    secret = bytes(range(32))
    assert secret.hex() not in format_party_key(
        Ed25519PrivateKey.from_private_bytes(secret)
    )


@pytest.mark.parametrize("end", ["\n", " ", "0", "g"])
def test_nothing_may_follow_a_key(end: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_party_key("ed25519:" + 64 * "0" + end)
    assert caught.value.code == "party-key-invalid"


@given(st.text())
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_party_key(text)


# Keys that nobody made.

FIELD = 2**255 - 19
ORDER_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"


def with_sign(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] | 0x80])


def small_order() -> list[bytes]:
    """Returns every spelling of the eight points of small order, as RFC 8032 has it."""
    order_8 = int.from_bytes(bytes.fromhex(ORDER_8), "little")
    found = []
    for y in (0, 1, FIELD - 1, order_8, FIELD - order_8):
        raw = y.to_bytes(32, "little")
        found += [raw, with_sign(raw)]
    return found


def refusal(raw: bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_party_key("ed25519:" + raw.hex())
    assert caught.value.code == "party-key-invalid"
    return caught.value


@pytest.mark.parametrize("raw", small_order(), ids=bytes.hex)
def test_a_key_of_small_order_is_no_key(raw: bytes) -> None:
    assert "small order" in refusal(raw).got


def test_under_a_key_of_small_order_anybody_signs_anything() -> None:
    """Why such a key is refused: one signature made of constants holds for any text."""
    identity = (1).to_bytes(32, "little")
    key = Ed25519PublicKey.from_public_bytes(identity)
    for text in (b"", b"a plan", bytes(1000)):
        key.verify(identity + bytes(32), text)
    refusal(identity)


@pytest.mark.parametrize("y", range(FIELD, 2**255))
def test_a_key_in_a_second_spelling_is_no_key(y: int) -> None:
    raw = y.to_bytes(32, "little")
    for spelling in (raw, with_sign(raw)):
        assert "canonical" in refusal(spelling).got


@given(st.binary(min_size=32, max_size=32))
def test_every_key_that_somebody_made_is_accepted(secret: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secret)
    assert parse_party_key(format_party_key(key)) == key.public_key()
