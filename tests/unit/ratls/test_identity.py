from __future__ import annotations

import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import VerificationError
from cloister.ratls.identity import SPKI_BYTES, new_identity, parse_spki, spki_of

SPKI = new_identity().tls_spki


def test_every_identity_is_a_fresh_one() -> None:
    first, second = new_identity(), new_identity()
    assert first.tls_spki != second.tls_spki
    assert first.encryption_public != second.encryption_public


def test_an_identity_shows_no_secret() -> None:
    identity = new_identity()
    number = identity.tls_key.private_numbers().private_value
    assert repr(identity) == "NodeIdentity()"
    assert str(number) not in str(identity)


def test_a_public_key_reads_as_written() -> None:
    assert len(SPKI) == SPKI_BYTES
    assert spki_of(parse_spki(SPKI)) == SPKI


def test_keys_of_another_kind_are_refused() -> None:
    for key in (
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        x25519.X25519PrivateKey.generate().public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ):
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(VerificationError) as caught:
            parse_spki(der)
        assert caught.value.code == "tls-key-invalid"


def test_a_key_has_one_name_only() -> None:
    compressed = parse_spki(SPKI).public_bytes(
        Encoding.X962, PublicFormat.CompressedPoint
    )
    # The same key, with a compressed point and the lengths that go with it.
    second_name = b"\x30\x39" + SPKI[2:23] + b"\x03\x22\x00" + compressed
    with pytest.raises(VerificationError) as caught:
        parse_spki(second_name)
    assert caught.value.got == "another encoding of the key"


def test_no_flipped_bit_passes() -> None:
    for bit in range(8 * SPKI_BYTES):
        flipped = bytearray(SPKI)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            parse_spki(bytes(flipped))


@given(
    st.binary(max_size=120) | st.binary(max_size=64).map(lambda end: SPKI[:27] + end)
)
def test_no_bytes_raise_anything_but_a_verification_error(der: bytes) -> None:
    with contextlib.suppress(VerificationError):
        parse_spki(der)
