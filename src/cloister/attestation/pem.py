"""A chain of certificates in PEM, read in one way only.

Follows RFC 7468's strict form. Lenient readers pass over text between the blocks and
accept several spellings of one value, so that bytes nobody signed could be changed.
"""

from __future__ import annotations

import base64
import binascii
import re

from cloister.errors import VerificationError

# Intel's chain is about 3.7 KB.
MAX_CHAIN_PEM_BYTES = 16_384

_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n"
    rb"([A-Za-z0-9+/=\r\n]+?)"
    rb"\r?\n-----END CERTIFICATE-----(?:\r?\n|\Z)"
)


def split_pem_chain(unverified_pem: bytes, *, step: int) -> tuple[bytes, bytes, bytes]:
    """Returns the DER of leaf, CA and root; see `split_pem`.

    Raises:
        VerificationError: If there are not exactly three blocks of strict PEM.
    """
    leaf, ca, root = split_pem(unverified_pem, names=("leaf", "CA", "root"), step=step)
    return leaf, ca, root


def split_pem(
    unverified_pem: bytes, *, names: tuple[str, ...], step: int
) -> tuple[bytes, ...]:
    """Returns the DER of each certificate of a chain.

    Nothing stands before, between or after the blocks except a final NUL, and base64 is
    canonical but for where its lines break: makers break them differently.

    Args:
        unverified_pem: The chain.
        names: What each certificate of it is; their number is its length.
        step: Number of the verification step it is read for.

    Raises:
        VerificationError: If there are not exactly so many blocks of strict PEM.
    """
    if len(unverified_pem) > MAX_CHAIN_PEM_BYTES:
        raise _malformed(f"chain is over {MAX_CHAIN_PEM_BYTES} bytes", step=step)
    text = unverified_pem.removesuffix(b"\0")
    ders: list[bytes] = []
    position = 0
    while position < len(text):
        block = _BLOCK.match(text, position)
        if block is None:
            raise _malformed("not PEM, or something stands beside it", step=step)
        ders.append(_base64_value(block[1], step=step))
        position = block.end()
    if len(ders) != len(names):
        raise VerificationError(
            "certificate chain has the wrong length",
            code="certificate-chain-length",
            expected=f"{', '.join(names[:-1])} and {names[-1]}",
            got=f"{len(ders)} certificates",
            step=step,
        )
    return tuple(ders)


def _base64_value(lines: bytes, *, step: int) -> bytes:
    text = lines.replace(b"\r\n", b"").replace(b"\n", b"")
    try:
        value = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise _malformed(f"base64: {error}", step=step) from error
    if base64.b64encode(value) != text:
        raise _malformed("base64 is not in its canonical spelling", step=step)
    return value


def _malformed(why: str, *, step: int) -> VerificationError:
    return VerificationError(
        f"malformed certificate chain: {why}",
        code="certificate-chain-malformed",
        expected="PEM blocks and nothing else",
        step=step,
    )
