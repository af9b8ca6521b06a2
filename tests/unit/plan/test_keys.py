from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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
