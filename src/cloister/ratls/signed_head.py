"""A custodian's signed word on how far a run's audit log had come.

A log can be cut after any record and is a good log still. So each party's custodian
keeps, with the run's mark, the head that its node was told of, and writes it down for
whoever audits the run: one statement, in a DSSE envelope of the type `HEAD_TYPE`,
signed by the party's key, with that key as the plan writes it for its keyid.

What this module does not do: sign and verify. The envelope is `storage.dsse`'s; a
custodian signs it, and `federation.auditing.heads` verifies it under the plan.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError, StorageError
from cloister.plan.plan import Name, RunId
from cloister.ratls.mark import Mark
from cloister.ratls.testimony import Bytes32
from cloister.ratls.warrant import Seconds

HEAD_TYPE = "application/vnd.cloister.audit-head.v1+json"


class SignedHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed: the party's mark of a run, and when its custodian had it.

    Attributes:
        run_id: The run.
        plan_hash: The plan that the party's node worked under.
        party: Whose custodian says so.
        round: Rounds completed.
        state: SHA-256 of the state after that round.
        server_epoch: Epoch of the server's warrant.
        server_key: SHA-256 of the SubjectPublicKeyInfo of the server's TLS key.
        audit_head: Head of the server's log that its node was told of then.
        at: When the mark was deposited, Unix time, by the custodian's clock. The log
            was so long by then.
    """

    run_id: RunId
    plan_hash: Bytes32
    party: Name
    round: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    state: Bytes32
    server_epoch: Annotated[int, Meta(ge=1, le=2**53)]
    server_key: Bytes32
    audit_head: Bytes32
    at: Seconds


def head_from_mark(
    mark: Mark, *, run_id: str, plan_hash: bytes, party: str, at: int
) -> SignedHead:
    """Returns what a custodian can say of a run's log.

    Args:
        mark: The mark that it keeps.
        run_id: The run.
        plan_hash: The plan.
        party: Whose custodian it is.
        at: When the mark was deposited, Unix time.

    Raises:
        ConfigError: If the mark has no head.
    """
    if mark.audit_head is None:
        raise ConfigError(
            f"{party!r} knows no head of the audit log of {run_id}",
            code="audit-head-missing",
            expected="a mark with a head, of a server that keeps an audit log",
        )
    return SignedHead(
        run_id=run_id,
        plan_hash=plan_hash,
        party=party,
        round=mark.round,
        state=mark.state,
        server_epoch=mark.server_epoch,
        server_key=mark.server_key,
        audit_head=mark.audit_head,
        at=at,
    )


def encode_head(head: SignedHead) -> bytes:
    """Returns the payload of the envelope: JSON, bytes in base64."""
    return msgspec.json.encode(head)


def parse_head(unverified_payload: bytes) -> SignedHead:
    """Returns the statement in a payload; nobody may have signed it.

    Raises:
        StorageError: If it is not exactly what `encode_head` writes.
    """
    try:
        head = msgspec.json.decode(unverified_payload, type=SignedHead)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(str(error)[:200]) from error
    # One statement has one spelling: no member twice, no spare bits of base64.
    if encode_head(head) != unverified_payload:
        raise _malformed("spelled in another way")
    return head


def _malformed(got: str) -> StorageError:
    return StorageError(
        "this is no statement of a custodian on a log's head",
        code="audit-head-malformed",
        expected="the payload that `cloister custodian head` signs",
        got=got,
    )
