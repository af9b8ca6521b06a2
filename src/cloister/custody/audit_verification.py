"""Checks a custodian's exported audit, without the custodian and without a network.

It shows what a party says of its own decisions, whole and in order, and that each was
what the party's own rules and plans ask for. It does not show that nothing is missing
at its end, nor that the party did not write it all anew: it signs its own log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, assert_never

import msgspec
from cryptography.exceptions import InvalidSignature

from cloister.custody.audit_history import (
    ConsentSeen,
    History,
    KeySeen,
    NodeSeen,
    ReleaseSeen,
)
from cloister.custody.audit_records import (
    AnyCustodianEntry,
    CollateralKept,
    ConsentGiven,
    ConsentWithdrawn,
    CustodianOpened,
    KeyAdded,
    KeyReleased,
    KeyRevoked,
    KeyRotated,
    MarkRewound,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)
from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.plan.keys import parse_party_key
from cloister.storage.audit_chain import Link

_DECODER: Final[msgspec.json.Decoder[AnyCustodianEntry]] = msgspec.json.Decoder(
    AnyCustodianEntry
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodianAuditReport:
    """A custodian's audit in which every step held.

    Attributes:
        party: Whose custodian.
        key: The key that signed every record, as plans write it.
        key_compared: Whether the auditor knew that key from elsewhere. If not, nothing
            says that this is the party's own log.
        simulated: Whether some plan in it is simulated: evidence proves nothing then.
        records: Number of records.
        head: Head of the log, hex. Behind it the log may have been cut.
        began: Time of the first record, by the custodian's clock.
        ended: Time of the last record.
        consents: Plans the party consented to.
        nodes: Each node of the party that got a warrant, and each of another party
            that came for a share.
        releases: Each release of keys.
        keys: What became of each key in the custodian's own keeping.
        refusals: How many nodes that had proved themselves were refused.
        rewound: Runs that an operator let go back behind their mark.
    """

    party: str
    key: str
    key_compared: bool
    simulated: bool
    records: int
    head: str
    began: datetime
    ended: datetime
    consents: tuple[ConsentSeen, ...]
    nodes: tuple[NodeSeen, ...]
    releases: tuple[ReleaseSeen, ...]
    keys: tuple[KeySeen, ...]
    refusals: int
    rewound: tuple[str, ...]


def verify_custodian_audit(
    links: Iterable[Link], *, key: str | None
) -> CustodianAuditReport:
    """Returns what a custodian's audit shows.

    For each record, in this order:

    1. it follows the one before it: `links` are those of `parse_links`;
    2. the party's key signed it, the same for all;
    3. it has the form of its kind; the first one, and no other, opens the log;
    4. a consent is the party's, under that key, to the very plan that is recorded;
    5. a warrant was signed under a plan in force, for a node whose testimony holds at
       that time; its epoch is the next one, or its own again with the same keys;
    6. another party's node came with its party's warrant, and its testimony holds;
    7. keys were released under a plan in force, to the newest node of its party that
       had a warrant or was noted, while that lasted, sealed to the encryption key that
       it had proved; they are those that the plan gives to this node here, and none of
       them was revoked before;
    8. a key is added once, replaced while it is active, and revoked once.

    Refusals are not judged again: their form and signature alone are checked. A release
    of keys that the custodian does not keep itself says no more than their names.

    Args:
        links: The log, unverified but for step 1.
        key: The party's key as plans write it; None if the auditor does not know it.

    Raises:
        ConfigError: If `key` is none.
        StorageError: If step 1 or 3 fails; its message names the record.
        VerificationError: If another step fails, likewise.
    """
    if key is not None:
        parse_party_key(key)
    history: History | None = None
    named, began, last = key, 0, None
    # Step 1, by whoever made `links`
    for link in links:
        # Step 2
        named = _check_signature(link, named)
        # Step 3
        entry = _parse(link)
        if history is None:
            history, began = _opened(entry, key=named), link.at_ms
        else:
            _take(history, link, entry)
        last = link
    if history is None or last is None or named is None:
        raise _refused("the log is empty", code="audit-empty", expected="records")
    return CustodianAuditReport(
        party=history.party,
        key=named,
        key_compared=key is not None,
        simulated=history.simulated,
        records=last.seq + 1,
        head=last.head,
        began=_time(began),
        ended=_time(last.at_ms),
        consents=tuple(history.consents.values()),
        nodes=tuple(history.nodes.values()),
        releases=tuple(history.releases),
        keys=tuple(history.keys.values()),
        refusals=history.refusals,
        rewound=tuple(history.rewound),
    )


def _check_signature(link: Link, key: str | None) -> str:
    """Returns the key that signed a record; the first one says which it is."""
    envelope = link.envelope
    if key is not None and envelope.keyid != key:
        raise _at(link, "the record is signed by another key", key, envelope.keyid)
    try:
        public = parse_party_key(envelope.keyid)
        public.verify(envelope.signature, envelope.signed)
    except (CloisterError, InvalidSignature) as error:
        raise _at(
            link,
            "the record is not signed by the party",
            f"a signature by {envelope.keyid}",
            "another one",
        ) from error
    return envelope.keyid


def _parse(link: Link) -> AnyCustodianEntry:
    try:
        entry: AnyCustodianEntry = _DECODER.decode(link.entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(link, str(error)[:200]) from error
    # One record has one spelling.
    if msgspec.json.encode(entry) != link.entry:
        raise _malformed(link, "spelled in another way")
    return entry


def _opened(entry: AnyCustodianEntry, *, key: str) -> History:
    if not isinstance(entry, CustodianOpened):
        raise _refused(
            "this is not the log of a custodian",
            code="audit-first",
            expected="a first record that says whose custodian it is",
        )
    return History(party=entry.party, key=key)


def _take(history: History, link: Link, entry: AnyCustodianEntry) -> None:
    try:
        _believe(history, entry, at=_time(link.at_ms))
    except CloisterError as error:
        raise VerificationError(
            f"record {link.seq} does not hold: {error.what}",
            code=error.code,
            expected=error.expected,
            got=error.got,
        ) from error


def _believe(history: History, entry: AnyCustodianEntry, *, at: datetime) -> None:
    match entry:
        case CustodianOpened():
            raise _refused(
                "the log is opened twice", code="audit-first", expected="once"
            )
        case ConsentGiven():
            history.consent(entry, at=at)
        case ConsentWithdrawn():
            history.withdraw(entry, at=at)
        case CollateralKept():
            history.collateral.keep(entry.text, sha256=entry.sha256)
        case WarrantSigned():
            history.warrant(entry, at=at)
        case WarrantNoted():
            history.note(entry, at=at)
        case KeyReleased():
            history.release(entry, at=at)
        case KeyAdded() | KeyRotated() | KeyRevoked():
            history.change_key(entry, at=at)
        case NodeRefused() | MarkRewound():
            history.count(entry)
        case _:
            assert_never(entry)


def _time(at_ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise _refused(
            "a time lies outside any calendar",
            code="audit-time",
            expected="Unix time in milliseconds",
            got=str(at_ms),
        ) from error


def _malformed(link: Link, got: str) -> StorageError:
    return StorageError(
        f"line {link.seq + 1} is no record of a custodian",
        code="audit-malformed",
        expected="a record as Cloister writes it",
        got=got,
    )


def _at(link: Link, what: str, expected: str, got: str) -> VerificationError:
    return _refused(
        f"record {link.seq}: {what}", code="audit-signature", expected=expected, got=got
    )


def _refused(
    what: str, *, code: str, expected: str, got: str = ""
) -> VerificationError:
    return VerificationError(what, code=code, expected=expected, got=got)
