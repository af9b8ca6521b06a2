"""ECDSA with SHA-256 over P-256, in the raw form of quotes and collateral."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.errors import VerificationError

COORDINATE_BYTES = 32


def check_signature(
    key: ec.EllipticCurvePublicKey,
    *,
    signature: bytes,
    signed: bytes,
    what: str,
    code: str,
    step: int,
) -> None:
    """Checks that `signature`, r||s, is by `key` over exactly `signed`.

    Raises:
        VerificationError: If it is not, with the given message, code and step.
    """
    r = int.from_bytes(signature[:COORDINATE_BYTES], "big")
    s = int.from_bytes(signature[COORDINATE_BYTES:], "big")
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise VerificationError(what, code=code, step=step) from error
