"""What every platform does around its sealing key: expands it for one purpose."""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import PlatformError

SEALING_KEY_BYTES = 32


def expanded(material: bytes, *, label: bytes) -> bytes:
    """Returns a key of `SEALING_KEY_BYTES` that says nothing of what it came from.

    Args:
        material: Secret and uniform.
        label: What the key is for; no two purposes share one.
    """
    hkdf = HKDF(algorithm=SHA256(), length=SEALING_KEY_BYTES, salt=None, info=label)
    return hkdf.derive(material)


def no_sealing_key(platform: str, *, got: str) -> PlatformError:
    """Returns the error for a platform that has no sealing key to give."""
    return PlatformError(
        f"{platform} gives no sealing key",
        code="sealing-unavailable",
        expected="an SGX enclave under Gramine 1.5 or later",
        got=got,
        remedy="Give at least two parties of the plan a state_share.",
    )
