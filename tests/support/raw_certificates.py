"""Certificates put together from raw DER, which no library would write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.der import (
    BIT_STRING,
    OCTET_STRING,
    encode,
    encode_boolean,
    encode_oid,
    encode_sequence,
    parse_der,
)

_EXTENSIONS = 0xA3
Extensions = list[bytes]


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """Returns one extension in DER."""
    flag = encode_boolean(value=True) if critical else b""
    return encode_sequence(encode_oid(oid), flag, encode(OCTET_STRING, value))


def with_extensions(
    der: bytes,
    key: ec.EllipticCurvePrivateKey,
    change: Callable[[Extensions], Sequence[bytes]],
) -> bytes:
    """Returns a certificate with other extensions, signed anew by `key`.

    Args:
        der: The certificate.
        key: Its own key.
        change: Gives its extensions, in order, from those that it has.
    """
    to_be_signed, algorithm, _ = parse_der(der).children()
    *fields, last = to_be_signed.children()
    [sequence] = last.children(_EXTENSIONS)
    found = [encode(it.tag, it.content) for it in sequence.children()]
    signed = encode_sequence(
        *(encode(it.tag, it.content) for it in fields),
        encode(_EXTENSIONS, encode_sequence(*change(found))),
    )
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return encode_sequence(
        signed,
        encode(algorithm.tag, algorithm.content),
        encode(BIT_STRING, b"\0" + signature),
    )
