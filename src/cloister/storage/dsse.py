"""DSSE envelopes: bytes, and one signature over them, on one line.

Follows DSSE 1.0.2 (https://github.com/secure-systems-lab/dsse), and accepts less of it:
one signature, base64 of the standard alphabet, no other members, no spaces. So an
envelope has one spelling. What this module does not do: verify a signature; that is for
whoever knows which key it must be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from cloister.errors import StorageError

PAYLOAD_TYPE = "application/vnd.cloister.audit.v1+json"
# A plan with the consents of a thousand parties is some hundred kilobytes.
MAX_LINE_BYTES = 16 * 2**20
LINE_START = b'{"payload":"'  # what every line begins with

# Nothing that JSON would write in two ways, and nothing that ends a line.
_TEXT = re.compile(r"[!#-\[\]-~]{1,256}")
_MAX_SIGNATURE_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A payload and a signature that may be over it.

    Attributes:
        payload: What is signed, with its type (`pae`).
        payload_type: What the payload is.
        keyid: Which key is said to have signed. It is under no signature: verify with
            the key that it must be, and compare this with that key's own.
        signature: Over ``pae(payload, payload_type=payload_type)``.
    """

    payload: bytes
    payload_type: str = PAYLOAD_TYPE
    keyid: str
    signature: bytes

    def __post_init__(self) -> None:
        for what, text in (("payload type", self.payload_type), ("keyid", self.keyid)):
            if not _TEXT.fullmatch(text):
                raise ValueError(f"{what} must be 1 to 256 printable characters")
        if not 0 < len(self.signature) <= _MAX_SIGNATURE_BYTES:
            raise ValueError(f"a signature has 1 to {_MAX_SIGNATURE_BYTES} bytes")

    @property
    def signed(self) -> bytes:
        """What the signature must be over."""
        return pae(self.payload, payload_type=self.payload_type)


def pae(payload: bytes, *, payload_type: str) -> bytes:
    """Returns the pre-authentication encoding: what is signed for a payload.

    Lengths stand before the parts, so that no two pairs have one encoding.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode_envelope(envelope: Envelope) -> bytes:
    """Returns the envelope as JSON, without a newline in it or behind it.

    Raises:
        StorageError: If it is over `MAX_LINE_BYTES`.
    """
    line = msgspec.json.encode(
        _Form(
            payload=envelope.payload,
            payloadType=envelope.payload_type,
            signatures=(_Signature(keyid=envelope.keyid, sig=envelope.signature),),
        )
    )
    if len(line) > MAX_LINE_BYTES:
        raise StorageError(
            "a record is too large to be written",
            code="audit-too-large",
            expected=f"at most {MAX_LINE_BYTES} bytes",
            got=str(len(line)),
        )
    return line


def parse_envelope(unverified: bytes) -> Envelope:
    """Returns the envelope that one line holds; its signature may be anybody's.

    Args:
        unverified: The line, without its newline.

    Raises:
        StorageError: If it is not exactly what `encode_envelope` writes.
    """
    if len(unverified) > MAX_LINE_BYTES:
        raise _malformed(f"over {MAX_LINE_BYTES} bytes")
    try:
        form = msgspec.json.decode(unverified, type=_Form)
        envelope = Envelope(
            payload=form.payload,
            payload_type=form.payloadType,
            keyid=form.signatures[0].keyid,
            signature=form.signatures[0].sig,
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise _malformed(str(error)) from error
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    # Spaces, escapes, repeated members, spare bits of base64: all of it ends here.
    if encode_envelope(envelope) != unverified:
        raise _malformed("spelled in another way")
    return envelope


class _Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keyid: str
    sig: bytes


class _Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Members in the specification's order."""

    payload: bytes
    payloadType: str  # noqa: N815 - the specification's name
    signatures: tuple[_Signature]


def _malformed(got: str) -> StorageError:
    return StorageError(
        "this is no DSSE envelope as Cloister writes it",
        code="audit-malformed",
        expected="one JSON object on one line, with one signature",
        got=got,
    )
