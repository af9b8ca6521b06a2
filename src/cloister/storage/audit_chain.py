"""A chain of records: each names the hash of the one before it.

Form and meaning: ``docs/spec/audit.md``. A chain shows that no record in it was
changed, taken out, put in or moved. It does not show that none is missing at its end: a
log cut after any whole line is a good chain. That is what heads are for, which others
keep. What this module does not do: keep a chain (`audit_file` does), or know who signs.
Every `Link` that was read may be anybody's until the caller has verified its envelope
with the key that it must be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, BinaryIO, Protocol

import msgspec
from msgspec import Meta

from cloister.errors import StorageError
from cloister.storage.dsse import (
    MAX_LINE_BYTES,
    PAYLOAD_TYPE,
    Envelope,
    pae,
    parse_envelope,
)

FIRST = "0" * 64  # what the first record names as the one before it

# A number that every JSON reader keeps exactly.
_MAX_NUMBER = 2**53
_Number = Annotated[int, Meta(ge=0, le=_MAX_NUMBER)]


class Signer(Protocol):
    """Who signs records."""

    @property
    def keyid(self) -> str:
        """Name of the key."""
        ...

    def sign(self, message: bytes, /) -> bytes:
        """Returns a signature over `message`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One record in its place. Its signature is not verified.

    Attributes:
        seq: Its number, from 0.
        previous: Head before it, lower-case hex; `FIRST` for the first.
        at_ms: Unix time in milliseconds, by whoever wrote it.
        entry: What happened: a JSON object as it was written. Form, order of members
            and repeated ones are the caller's to check.
        envelope: What it came in.
        head: SHA-256 of what is signed, lower-case hex. It says nothing of the
            signature, which may have several forms.
    """

    seq: int
    previous: str
    at_ms: int
    entry: bytes
    envelope: Envelope
    head: str


def make_payload(*, seq: int, previous: str, at_ms: int, entry: bytes) -> bytes:
    """Returns what is signed for a record, without its type.

    Args:
        seq: Its number.
        previous: The head before it.
        at_ms: Unix time in milliseconds.
        entry: A JSON object.

    Raises:
        ValueError: If a value has no place in a record; a bug of the caller.
    """
    form = _Payload(seq=seq, previous=previous, at=at_ms, entry=msgspec.Raw(entry))
    payload = msgspec.json.encode(form)
    try:
        _parse_payload(payload)
    except StorageError as error:
        raise ValueError(f"not the content of a record: {error.got}") from error
    return payload


def head_of(payload: bytes) -> str:
    """Returns the head of a log that ends with the record of this payload."""
    return hashlib.sha256(pae(payload, payload_type=PAYLOAD_TYPE)).hexdigest()


def sign_payload(payload: bytes, *, signer: Signer) -> Envelope:
    """Returns a record's envelope."""
    signature = signer.sign(pae(payload, payload_type=PAYLOAD_TYPE))
    return Envelope(payload=payload, keyid=signer.keyid, signature=signature)


def next_link(
    previous: Link | None, *, entry: bytes, at_ms: int, signer: Signer
) -> Link:
    """Returns the record that comes after `previous`, signed.

    Args:
        previous: The last record; None for a new chain.
        entry: A JSON object.
        at_ms: Unix time in milliseconds; a clock that goes back is held where it was.
        signer: Who signs.

    Raises:
        ValueError: If `entry` is no JSON object; a bug of the caller.
    """
    payload = make_payload(
        seq=0 if previous is None else previous.seq + 1,
        previous=FIRST if previous is None else previous.head,
        at_ms=at_ms if previous is None else max(at_ms, previous.at_ms),
        entry=entry,
    )
    return _link(_parse_payload(payload), sign_payload(payload, signer=signer))


def parse_links(unverified: BinaryIO) -> Iterator[Link]:
    """Yields the records of a whole log, one a line, while they are a chain.

    For each line, in this order:

    1. It ends with a newline and is one envelope of a record.
    2. Its number follows the one before it, from 0.
    3. It names the head before it.
    4. Its time is not before the one before it.

    Left to the caller: every signature, what an entry says, and whether records are
    missing at the end. Nothing may be believed before the last has been yielded.

    Args:
        unverified: The log, from its first byte.

    Raises:
        StorageError: If one of the steps fails; its message names the line.
    """
    last: Link | None = None
    number = 0
    while line := _read_line(unverified):
        number += 1
        last = parse_link(line, after=last, number=number)
        yield last


def parse_link(unverified: bytes, *, after: Link | None, number: int) -> Link:
    """Returns the record on one line, if it follows `after`; see `parse_links`.

    Args:
        unverified: The line, newline and all.
        after: The record before it; None for the first.
        number: The line's, for messages; from 1.

    Raises:
        StorageError: If it does not.
    """
    # 1
    link = _parse_line(unverified, number=number)
    # 2
    seq = 0 if after is None else after.seq + 1
    if link.seq != seq:
        raise _error("audit-order", number, f"record {seq}", f"record {link.seq}")
    # 3
    previous = FIRST if after is None else after.head
    if link.previous != previous:
        raise _error(
            "audit-broken", number, f"{previous} as the head before", link.previous
        )
    # 4
    if after is not None and link.at_ms < after.at_ms:
        raise _error(
            "audit-order", number, f"a time from {after.at_ms} on", str(link.at_ms)
        )
    return link


class _Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seq: _Number
    previous: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    at: _Number
    entry: msgspec.Raw


def _read_line(log: BinaryIO) -> bytes:
    try:
        return log.readline(MAX_LINE_BYTES + 1)
    except OSError as error:
        raise StorageError(
            "cannot read the log",
            code="audit-unreadable",
            expected="a disk that gives back what lies on it",
            got=error.strerror or "an error",
            remedy="Read it from another copy, or mend the disk.",
        ) from error


def _parse_line(line: bytes, *, number: int) -> Link:
    try:
        if not line.endswith(b"\n"):
            raise _malformed("no newline at its end")
        envelope = parse_envelope(line[:-1])
        if envelope.payload_type != PAYLOAD_TYPE:
            raise _malformed(f"payload type {envelope.payload_type}")
        return _link(_parse_payload(envelope.payload), envelope)
    except StorageError as error:
        raise _error("audit-malformed", number, error.expected, error.got) from error


def _parse_payload(payload: bytes) -> _Payload:
    try:
        parsed = msgspec.json.decode(payload, type=_Payload)
        # `Raw` looks neither at what kind of value it is nor at its text.
        bytes(parsed.entry).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _malformed(str(error)) from error
    except RecursionError as error:
        raise _malformed("nested too deeply") from error
    if bytes(parsed.entry)[:1] != b"{":
        raise _malformed("an entry that is no object")
    if msgspec.json.encode(parsed) != payload:
        raise _malformed("spelled in another way")
    return parsed


def _link(parsed: _Payload, envelope: Envelope) -> Link:
    return Link(
        seq=parsed.seq,
        previous=parsed.previous,
        at_ms=parsed.at,
        entry=bytes(parsed.entry),
        envelope=envelope,
        head=hashlib.sha256(envelope.signed).hexdigest(),
    )


def _malformed(got: str) -> StorageError:
    return StorageError(
        "this is no record",
        code="audit-malformed",
        expected="an audit record as Cloister writes it",
        got=got,
    )


def _error(code: str, number: int, expected: str, got: str) -> StorageError:
    return StorageError(
        f"line {number} of the log does not hold",
        code=code,
        expected=expected,
        got=got,
        remedy="The log was changed after it was written; compare other copies.",
    )
