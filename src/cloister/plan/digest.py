"""Digests as plan and consents write them: ``sha256:`` and 64 hex digits."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Patterns end with \Z: a $ would let a line break through at the end.
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]

_PREFIX = "sha256:"


def format_digest(sha256: bytes) -> str:
    """Returns a SHA-256 value, 32 bytes, as a `Digest`."""
    return _PREFIX + sha256.hex()


def digest_bytes(digest: Digest) -> bytes:
    """Returns the 32 bytes of a `Digest` that fits its schema."""
    return bytes.fromhex(digest.removeprefix(_PREFIX))
