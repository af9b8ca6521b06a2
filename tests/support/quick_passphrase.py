"""Seals to a passphrase with next to no work, so that a test can guess.

What is written is the age format (https://age-encryption.org/v1), scrypt recipient. The
real one takes a second for each guess, or many on a busy machine.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_LOG_N = 4


def quickly_sealed(content: bytes, passphrase: str) -> bytes:
    """Returns `content`, of less than 64 KiB, sealed to a passphrase."""
    file_key, salt, nonce = (secrets.token_bytes(16) for _ in range(3))
    wrap = hashlib.scrypt(
        passphrase.encode(),
        salt=b"age-encryption.org/v1/scrypt" + salt,
        n=1 << _LOG_N,
        r=8,
        p=1,
        dklen=32,
    )
    body = ChaCha20Poly1305(wrap).encrypt(bytes(12), file_key, None)
    head = b"age-encryption.org/v1\n-> scrypt %s %d\n%s\n---" % (
        _base64(salt),
        _LOG_N,
        _base64(body),
    )
    mac = hmac.digest(_derived(file_key, b"", b"header"), head, "sha256")
    last = bytes(11) + b"\1"  # the first chunk is the last
    payload = ChaCha20Poly1305(_derived(file_key, nonce, b"payload"))
    return head + b" %s\n" % _base64(mac) + nonce + payload.encrypt(last, content, None)


def _derived(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def _base64(value: bytes) -> bytes:
    return base64.b64encode(value).rstrip(b"=")
