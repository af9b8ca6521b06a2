"""Opens a run's audit log for the server that writes to it from here on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_past import Past, read_past
from cloister.federation.audit_records import RunOpened
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, PlanHash, parse_plan, plan_hash
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.audit_file import AuditFile

_ASIDE_DIGITS = 16


def open_audit(
    path: Path,
    *,
    node: Node,
    consents: Sequence[bytes],
    plan_text: bytes,
    known: Mark | None,
    known_under: PlanHash | None,
) -> AuditLog:
    """Returns the log at `path`, in which the server is to be introduced next.

    An existing log must be this run's, written by its servers alone, all older than
    this one, and have the head that the custodian's mark names. Of an amended plan's
    predecessor there may be one: it is set aside, under a name with that plan's hash.

    Args:
        path: The file; made if absent.
        node: The server's node, warranted.
        consents: Each party's consent, as its file holds it, in plan order.
        plan_text: The plan's TOML text, to the byte.
        known: How far the server's party knows the run to be.
        known_under: The plan under which that was deposited: this one, or one before.

    Raises:
        ConfigError: If the text is another plan's than the node's.
        StorageError: If the file cannot be used, is no log, or another process has it.
        VerificationError: If the log is another run's or somebody else's, or was cut;
            or if a server wrote to it that is not older than this one, or whose clock
            was ahead of this one's.
    """
    if plan_hash(parse_plan(plan_text)) != node.plan_hash:
        raise ConfigError(
            "the plan's text is not the plan that this node works under",
            code="plan-differs",
            expected=format_digest(node.plan_hash),
        )
    # Of a mark under a plan before, the head is in that plan's log.
    own = known if known_under == node.plan_hash else None
    file, past, dropped = _open(path, node=node, known=known, own=own)
    opening = RunOpened(
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        plan=plan_text,
        consents=tuple(consents),
    )
    return AuditLog(
        file,
        node=node,
        opening=opening if past.plan_hash is None else None,
        past=past,
        dropped_bytes=dropped,
    )


def _open(
    path: Path, *, node: Node, known: Mark | None, own: Mark | None
) -> tuple[AuditFile, Past, int]:
    """Returns the file, what it holds, and how much of an end was dropped."""
    plan = node.plan
    file = AuditFile.open(path)
    try:
        past = read_past(file.links, run_id=plan.run_id)
        dropped = file.repaired_bytes
        if _is_predecessors(past, plan):
            _check_not_cut(path, past, known)
            _set_aside(path, past)
        else:
            _check_plan(path, past, plan)
            _check_not_cut(path, past, own)
            _check_newer(past, node)
            if past.newest_at is not None:
                # Or its records would have the former server's time, and be judged by
                # that: no record's time is before the last one's.
                node.clock.raise_floor(past.newest_at, source="the audit log")
            # What a server wrote that died before its introduction; nobody knows it.
            dropped += file.keep_first(len(past.heads))
            return file, past, dropped
    except BaseException:
        # Also on Ctrl-C: the lock would keep the next server out. Raised again.
        file.close()
        raise
    # The lock was held until here; whoever takes it meanwhile has the right file.
    file.close()
    return _open(path, node=node, known=known, own=own)


def _is_predecessors(past: Past, plan: Plan) -> bool:
    before = plan.predecessor
    return (
        before is not None
        and past.plan_hash is not None
        and format_digest(past.plan_hash) == before.plan
    )


def _check_not_cut(path: Path, past: Past, known: Mark | None) -> None:
    if known is None or known.audit_head is None:
        return
    if known.audit_head.hex() not in past.heads:
        raise VerificationError(
            f"the log {path} lacks a record that this server's party knows of",
            code="audit-cut",
            expected=f"the head {known.audit_head.hex()}, of round {known.round}",
            got=f"{len(past.heads)} records with other heads",
            remedy="Restore the log. If it is lost, give the plan a new run; or have"
            " every party's operator run `cloister custodian rewind`, and start with"
            " --fresh.",
        )


def _set_aside(path: Path, past: Past) -> None:
    if past.plan_hash is None:
        raise RuntimeError("an empty log is nobody's")
    aside = path.with_name(
        f"{path.stem}.{past.plan_hash.hex()[:_ASIDE_DIGITS]}{path.suffix}"
    )
    # Whatever it is; to what a link leads does not matter.
    if os.path.lexists(aside):
        raise StorageError(
            f"the log of the plan before cannot be set aside: {aside} exists",
            code="audit-foreign",
            expected="one log of each plan",
            remedy="Move both away, and keep them.",
        )
    try:
        path.rename(aside)
    except OSError as error:
        raise _unwritable(path, error) from error


def _check_plan(path: Path, past: Past, plan: Plan) -> None:
    if past.plan_hash is None or past.plan_hash == plan_hash(plan):
        return
    raise VerificationError(
        f"the log {path} is of another plan",
        code="audit-foreign",
        expected=format_digest(plan_hash(plan)),
        got=format_digest(past.plan_hash),
        remedy="Each run has its own log; move this one away.",
    )


def _check_newer(past: Past, node: Node) -> None:
    """Refuses a server that an auditor would: epochs rise from one to the next."""
    before = past.newest.get((node.role, node.party))
    own = node.warrant.current.terms.epoch
    if before is not None and own <= before.number:
        raise VerificationError(
            "a server wrote to the log that is not older than this one",
            code="epoch-old",
            expected=f"an epoch of more than {before.number}",
            got=str(own),
            remedy="Stop the other one. If there is none, the custodian's database was"
            " put back: each start takes one epoch more.",
        )


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot set the log {path} aside",
        code="audit-unwritable",
        expected="a directory that this user can write to",
        got=error.strerror or "an error",
        remedy="Move it away by hand, and keep it.",
    )
