"""JSON documents that somebody signed: read in one way only, kept to the byte.

A signature covers text, not meaning: the text is cut out where it stands and never
written anew. RFC 8259 leaves open what a doubled key means, and readers differ; here it
is refused, and so is all that Intel's documents have no use for: fractions, numbers
longer than their fields, and the NaN and Infinity that Python would accept.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import Annotated, NoReturn, TypeVar

import msgspec

from cloister.errors import VerificationError

# Intel's largest TCB info so far is below 16 KB.
MAX_DOCUMENT_BYTES = 262_144
SIGNATURE_HEX_DIGITS = 128

_MAX_DIGITS = 10

# msgspec (0.22) describes a type to itself when it first meets it, and a second thread
# that comes meanwhile takes what is there of the description: the process dies of it
# (SIGSEGV). Nodes judge several peers at once, each in a thread.
_turn = threading.Lock()

Hex2 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{4}\Z")]
Hex4 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{8}\Z")]
Hex6 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{12}\Z")]
Hex8 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{16}\Z")]
Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{32}\Z")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{64}\Z")]
Hex48 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{96}\Z")]
Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{128}\Z")]
Svn8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
Svn16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Number32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
# PCS writes whole seconds of UTC and nothing else.
Timestamp = Annotated[
    str,
    msgspec.Meta(pattern=r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z"),
]
AdvisoryId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,64}\Z")]

_Document = TypeVar("_Document", bound=msgspec.Struct)


def read_document(
    unverified_text: bytes, form: type[_Document], *, what: str
) -> _Document:
    """Returns a document's fields; believes none of them.

    Fields that `form` does not have are passed over: they are signed, and a field that
    Intel adds later must not turn genuine platforms away.

    Args:
        unverified_text: The document, in UTF-8.
        form: Its fields and their ranges.
        what: Its name in errors.

    Raises:
        VerificationError: If it is not strict JSON of that form (step 4).
    """
    document = read_object(unverified_text, what=what)
    try:
        with _turn:
            return msgspec.convert(document, form)
    except msgspec.ValidationError as error:
        raise malformed(what, str(error)) from error


def read_object(
    unverified_text: bytes, *, what: str, max_bytes: int = MAX_DOCUMENT_BYTES
) -> dict[str, object]:
    """Returns the members of one JSON object.

    Args:
        unverified_text: The object, in UTF-8.
        what: Its name in errors.
        max_bytes: What is refused before anything is read.

    Raises:
        VerificationError: If it is not one, a key comes twice in any object of it, or
            a number is no integer of few digits (step 4).
    """
    if len(unverified_text) > max_bytes:
        raise malformed(what, f"over {max_bytes} bytes")
    try:
        document = _DECODER.decode(unverified_text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise malformed(what, str(error)) from error
    if not isinstance(document, dict):
        raise malformed(what, "not an object")
    _refuse_surrogates(document, what=what)
    return document


def _refuse_surrogates(value: object, *, what: str) -> None:
    """Refuses half characters, which JSON can escape and no encoding can carry."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise malformed(what, "half a character (a lone surrogate)") from error
    elif isinstance(value, dict):
        for key, member in value.items():
            _refuse_surrogates(key, what=what)
            _refuse_surrogates(member, what=what)
    elif isinstance(value, list):
        for member in value:
            _refuse_surrogates(member, what=what)


def split_signed_document(
    unverified_body: bytes, *, name: str, what: str
) -> tuple[bytes, str]:
    """Cuts `{"name": {...}, "signature": "..."}` into the signed text and the rest.

    The text is the exact substring of the body, as PCS and PCCS answer it.

    Args:
        unverified_body: The answer's body.
        name: Name of the signed member, "tcbInfo" or "enclaveIdentity".
        what: Name of the document in errors.

    Returns:
        The signed text, and the signature in hexadecimal.

    Raises:
        VerificationError: If the body has any other form (step 4).
    """
    members = read_object(unverified_body, what=what)
    signature = members.get("signature")
    if members.keys() != {name, "signature"} or not isinstance(signature, str):
        raise malformed(what, f"not exactly '{name}' and 'signature'")
    text = unverified_body.decode("utf-8")
    # The members are read a second time only to learn where each one ends; `members`
    # has shown that the text is well formed.
    position = text.index("{") + 1
    while True:
        key, position = _DECODER.raw_decode(text, _skipped(text, position, ","))
        start = _skipped(text, position, ":")
        _, position = _DECODER.raw_decode(text, start)
        if key == name:
            return text[start:position].encode("utf-8"), signature


def timestamp(text: str, *, what: str) -> datetime:
    """Returns the moment that a `Timestamp` names, aware, UTC.

    Raises:
        VerificationError: If there is no such moment (step 4).
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise malformed(what, f"'{text}' is no time") from error


def malformed(what: str, why: str) -> VerificationError:
    """Returns the error for collateral that is not of its form."""
    return VerificationError(
        f"malformed {what}: {why}",
        code="collateral-malformed",
        remedy="fetch the collateral anew",
        step=4,
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return members


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"'{text[:20]}' is no integer")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_integer,
    parse_float=_no_number,
    parse_constant=_no_number,
)


def _skipped(text: str, position: int, separator: str) -> int:
    """Returns where the next value begins, after white space and one separator."""
    while text[position] in f" \t\r\n{separator}":
        position += 1
    return position
