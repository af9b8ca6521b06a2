"""How the register records what it decides: a chain, in the same transaction.

Nobody can decide without the record, nor record without the decision. The records are
signed when they are shown (`audit_export`), not here: the register has no key.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cloister.custody.audit_records import (
    REASON_CHARACTERS,
    AnyCustodianEntry,
    CollateralKept,
    CustodianOpened,
    KeyReleased,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)
from cloister.custody.register_rows import RecordRow
from cloister.custody.register_tables import Rows
from cloister.errors import CloisterError, ProtocolError
from cloister.plan.plan import Role
from cloister.ratls.testimony import Said, Testimony, collateral_sha256
from cloister.storage.audit_chain import FIRST, head_of, make_payload

# A node asks once when it starts. More is somebody's loop, or somebody who collects.
RELEASES_AN_HOUR: Final = 60
# Likewise for warrants, of which a host gets one with each connection that it cuts.
WARRANTS_AN_HOUR: Final = 60
# Those beyond are in the custodian's log alone; no node fills the register's disk.
REFUSALS_AN_HOUR: Final = 60
_HOUR_MS: Final = 3_600_000
_SECOND_MS: Final = 1000


def write_record(
    rows: Rows, entry: AnyCustodianEntry, *, subject: str, at: int
) -> None:
    """Writes one record; before the first, the one that says whose custodian this is.

    Args:
        rows: The register.
        entry: What happened.
        subject: To whom or what, to find it by.
        at: Unix time, held where the last record's is if it went back.
    """
    last = _last(rows)
    if last is None:
        opened = CustodianOpened(party=rows.head.party)
        last = _append(rows, opened, after=None, subject=opened.party, at=at)
    _append(rows, entry, after=last, subject=subject, at=at)


def record_shown(
    rows: Rows,
    entry: WarrantSigned | WarrantNoted | NodeRefused,
    *,
    collateral: str | None,
    at: int,
) -> None:
    """Records what a node showed, and before it the collateral that it was judged with.

    Args:
        rows: The register.
        entry: What became of it.
        collateral: The text that its testimony names by hash; written once for each.
        at: Unix time.

    Raises:
        RuntimeError: If the text is not what the testimony names.
        StorageError: If only the operator's own acts have room left.
    """
    rows.check_room()
    named = entry.testimony.collateral
    found = None if collateral is None else collateral_sha256(collateral)
    if found != named:
        raise RuntimeError("not the collateral that the testimony names")
    if collateral is not None and found is not None:
        where = "WHERE kind = 'collateral' AND subject = ?"
        if not any(rows.records(where, found)):
            kept = CollateralKept(sha256=found, text=collateral)
            write_record(rows, kept, subject=found, at=at)
    write_record(rows, entry, subject=_whose(entry.testimony.said), at=at)


def check_warrant_rate(
    rows: Rows, entry: WarrantSigned | WarrantNoted, *, at: int
) -> None:
    """Checks that one more warrant would not be too many of late.

    No word about the node: its host, or a network, may have made it come so often. It
    waits, and the warrant that it has stays good.

    Raises:
        ProtocolError: If it would.
    """
    said = entry.testimony.said
    count = _count_in_hour(rows, _kind(entry), _whose(said), at=at)
    if count >= WARRANTS_AN_HOUR:
        raise ProtocolError(
            f"the {said.client_role} of {said.client_party!r} came too often",
            code="warrant-limit",
            expected=f"at most {WARRANTS_AN_HOUR} warrants an hour",
            got="one more",
            remedy="Find out what cuts its connections, or starts it over and over.",
        )


def record_time(rows: Rows, at: int) -> int:
    """Returns the Unix time that a record would have now.

    It is later than `at` where the clock went back a little.
    """
    return _now_ms(_last(rows), at) // _SECOND_MS


def check_release_rate(
    rows: Rows, *, run_id: str, role: Role, party: str, at: int
) -> None:
    """Checks that one more release to a node would not be too many of late.

    Raises:
        ProtocolError: If it would.
    """
    subject = _node(run_id, role, party)
    if _count_in_hour(rows, "key-released", subject, at=at) >= RELEASES_AN_HOUR:
        raise ProtocolError(
            f"the {role} of {party!r} asked for keys too often",
            code="release-limit",
            expected=f"at most {RELEASES_AN_HOUR} releases an hour",
            got="one more",
            remedy="Find out what starts this node over and over.",
        )


def record_release(rows: Rows, release: KeyReleased, *, at: int) -> None:
    """Records a release, unless there were too many of late.

    Raises:
        ProtocolError: If there were.
        StorageError: If only the operator's own acts have room left.
    """
    rows.check_room()
    run_id, role, party = release.run_id, release.role, release.party
    check_release_rate(rows, run_id=run_id, role=role, party=party, at=at)
    write_record(rows, release, subject=_node(run_id, role, party), at=at)


def refusal(testimony: Testimony, error: CloisterError) -> NodeRefused:
    """Returns the record of a refusal."""
    return NodeRefused(
        code=error.code, reason=str(error)[:REASON_CHARACTERS], testimony=testimony
    )


def record_refusal(
    rows: Rows, refused: NodeRefused, *, collateral: str | None, at: int
) -> None:
    """Records a refusal, unless there were many of this node's party of late."""
    subject = _whose(refused.testimony.said)
    if _count_in_hour(rows, "node-refused", subject, at=at) < REFUSALS_AN_HOUR:
        record_shown(rows, refused, collateral=collateral, at=at)


def _append(
    rows: Rows,
    entry: AnyCustodianEntry,
    *,
    after: RecordRow | None,
    subject: str,
    at: int,
) -> RecordRow:
    seq = 0 if after is None else after.seq + 1
    previous = FIRST if after is None else head_of(after.payload)
    at_ms = _now_ms(after, at)
    row = RecordRow(
        seq=seq,
        previous=previous,
        at_ms=at_ms,
        kind=_kind(entry),
        subject=subject,
        payload=make_payload(
            seq=seq, previous=previous, at_ms=at_ms, entry=msgspec.json.encode(entry)
        ),
    )
    rows.put(row, instead_of=None, at=at)
    return row


def _last(rows: Rows) -> RecordRow | None:
    return next(rows.records("ORDER BY seq DESC LIMIT 1"), None)


def _now_ms(last: RecordRow | None, at: int) -> int:
    return max(at * _SECOND_MS, 0 if last is None else last.at_ms)


def _count_in_hour(rows: Rows, kind: str, subject: str, *, at: int) -> int:
    # The time of records never goes back, so no clock that does makes room.
    since_ms = _now_ms(_last(rows), at) - _HOUR_MS
    return rows.count_records(kind, subject, after_ms=since_ms)


def _whose(said: Said) -> str:
    return _node(said.run_id, said.client_role, said.client_party)


def _node(run_id: str, role: str, party: str) -> str:
    return f"{run_id} {role} {party}"


def _kind(entry: AnyCustodianEntry) -> str:
    tag = entry.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError("a record without a kind")
    return tag
