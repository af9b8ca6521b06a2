"""What `cloister audit verify` says of a run: in lines, or as JSON for machines.

The first thing it says is what the report is worth: whether the keys were compared with
anything, and whether the log's end is proven.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from cloister.attestation.claims import SgxMeasurements
from cloister.attestation.policy import Verdict
from cloister.cli.attendance_words import attendance_lines, attendance_object
from cloister.cli.output import Json
from cloister.federation.auditing.report import (
    AdmissionSeen,
    AuditReport,
    Moment,
    ServerSeen,
)
from cloister.ratls.proofs import Standing

_SHORT_DIGITS = 16


def report_lines(report: AuditReport, *, model_compared: bool) -> list[str]:
    """Returns a good report in words.

    Args:
        report: What was found.
        model_compared: Whether the sealed model is the one in the log.
    """
    plan = report.plan
    return [
        f"HOLDS: {report.records} records of run {plan.run_id}, plan"
        f" {report.plan_hash.hex()[:_SHORT_DIGITS]}",
        *_rows("evidence", [_evidence(report)]),
        *_rows("keys", list(_keys(report))),
        *_rows("end", list(_end(report))),
        "",
        *_rows("servers", [it for seen in report.servers for it in _servers(seen)]),
        *_rows("nodes", list(_nodes(report.admissions))),
        *_rows("rounds", list(_rounds(report))),
        *_rows("model", list(_model(report, model_compared=model_compared))),
        *_rows("refused", list(_refused(report))),
        *_rows("time", list(_time(report))),
    ]


def report_object(report: AuditReport, *, model_compared: bool) -> Json:
    """Returns a good report as machines read it."""
    seal, counted = report.seal, report.counted
    return {
        "holds": True,
        "kind": "run",
        "run": report.plan.run_id,
        "plan_hash": report.plan_hash.hex(),
        "simulated": report.plan.simulated,
        "records": report.records,
        "unsigned_records": report.unsigned,
        "head": report.head,
        "anchors": {
            "plan_compared": report.plan_compared,
            "keys_compared": list(report.keys_compared),
            "keys_not_compared": report.keys_not_compared,
        },
        "end": {
            "proven": report.unproven == 0,
            "unproven_records": report.unproven,
            "proofs": [
                {
                    "party": it.party,
                    "record": it.upto.record,
                    "round": it.round,
                    "had_at": int(it.had_at.timestamp()),
                    "key_compared": it.party in report.keys_compared,
                }
                for it in report.proofs
            ],
            "countersigned": _moment_object(report.countersigned),
        },
        "servers": [
            {
                **_place(it.introduced),
                "epoch": it.epoch,
                "skipped_epochs": it.skipped,
                "tls_key_sha256": it.tls_key_sha256,
                "completed": it.completed,
                "lost_rounds": it.lost,
                "cut_after": _moment_object(it.cut_after),
                **_standing_object(it.verdict),
            }
            for it in report.servers
        ],
        "admissions": [
            {
                **_place(it.admitted),
                "party": it.party,
                "epoch": it.epoch,
                "tls_key_sha256": it.tls_key_sha256,
                "renewed": it.renewed,
                **_standing_object(it.standing),
            }
            for it in report.admissions
        ],
        "rounds": {
            "completed": report.completed,
            "planned": report.plan.training.rounds,
            "recorded": report.rounds_recorded,
            "participants": attendance_object(report),
        },
        "model": None
        if seal is None
        else {
            **_place(seal.sealed),
            "sha256": seal.sha256,
            "size_bytes": seal.size_bytes,
            "recipients": list(seal.recipients),
            "state": seal.state,
            "reports": seal.reports,
            "compared": model_compared,
        },
        "refusals": counted.refusals,
        "refusals_unrecorded": counted.refusals_unrecorded,
        "withdrawals": counted.withdrawals,
        "failures": counted.failures,
        "time": {
            "clock": "the server's host",
            "from": _seconds(report.opened.at),
            "to": _seconds(report.ended.at),
            "not_before": [
                {"what": it.what, "at": _seconds(it.at)} for it in report.signed_times
            ],
            "clock_ahead_seconds": report.clock_ahead_seconds,
        },
    }


def standing_words(standing: Standing) -> str:
    """Returns what a node proved itself to be, in a few words."""
    if not isinstance(standing, Verdict):
        return "by its party's key: nothing says what it runs"
    claims = standing.claims
    measured = claims.measurements
    name, value = (
        ("mr_enclave", measured.mr_enclave)
        if isinstance(measured, SgxMeasurements)
        else ("mrtd", measured.mrtd)
    )
    simulated = "simulated " if claims.simulated else ""
    return (
        f"{simulated}{claims.tee.upper()}, {name} {value[:_SHORT_DIGITS]},"
        f" {claims.tcb_status}, platform {claims.ppid[:_SHORT_DIGITS]}"
    )


def _evidence(report: AuditReport) -> str:
    if report.plan.simulated:
        root = report.plan.policy.server.root
        return f"SIMULATED, under {root}: nothing in it was confidential"
    return "hardware, under Intel's root"


def _keys(report: AuditReport) -> Iterator[str]:
    compared, left = report.keys_compared, report.keys_not_compared
    if report.plan_compared:
        yield "the plan is the one you brought, and so are all parties' keys"
        return
    if compared:
        yield f"compared with yours: {', '.join(compared)}"
    if left:
        yield f"NOT COMPARED with anything you brought: {', '.join(left)}"
    if left and compared:
        yield f"{' and '.join(compared)} consented to the plan that names them:"
    elif left:
        yield "Whoever gave you the log could have made all of it. Ask each party for"
        yield "its key and compare, or bring the plan (--plan) or keys (--key):"
    yield from (f"  {name}  {key}" for name, key in left.items())


def _end(report: AuditReport) -> Iterator[str]:
    proven, compared = report.proven, frozenset(report.keys_compared)
    for it in report.proofs:
        yield (
            f"proven up to record {it.upto.record} (round {it.round}) by the custodian"
            f" of {it.party}, who had it by {_at(it.had_at)}"
            + ("" if it.party in compared else ", IF that is its key")
        )
    if any(it.party not in compared for it in report.proofs):
        yield "a head counts when its party's key was compared: bring --plan or --key"
    if report.unproven:
        since = "all of it" if proven is None else f"{report.unproven} records"
        yield (
            f"NOT PROVEN: {since}. Only the server's host says that nothing followed;"
        )
        yield "bring heads of the parties' custodians (cloister custodian head, --head)"
    if report.unsigned:
        yield (
            f"{report.unsigned} more records are of a server that was never introduced,"
            " and count for nothing"
        )


def _servers(seen: ServerSeen) -> Iterator[str]:
    words = [
        f"record {seen.introduced.record}, {_at(seen.introduced.at)}: epoch"
        f" {seen.epoch}, {standing_words(seen.verdict)}"
    ]
    if seen.completed or seen.lost:
        words.append(f"went on after round {seen.completed}")
    if seen.lost:
        words.append(f"{seen.lost} rounds were lost and done again")
    if seen.skipped:
        words.append(
            f"{seen.skipped} servers were warranted before it and wrote nothing here"
        )
    yield "; ".join(words)
    if seen.cut_after is not None:
        yield (
            f"  The server before it did not end at record {seen.cut_after.record} by"
            " its own word: what it wrote"
        )
        yield "  after its custodian's last word MAY BE CUT there"


def _nodes(admissions: tuple[AdmissionSeen, ...]) -> Iterator[str]:
    if not admissions:
        yield "none was admitted"
    times = Counter((it.party, it.epoch) for it in admissions)
    newest = {(it.party, it.epoch): it for it in admissions}
    for (party, epoch), seen in newest.items():
        often = times[party, epoch]
        yield (
            f"{party}, epoch {epoch}: {standing_words(seen.standing)}"
            + (f"; admitted {often} times" if often > 1 else "")
        )


def _rounds(report: AuditReport) -> Iterator[str]:
    yield f"{report.completed} of {report.plan.training.rounds} completed"
    yield from attendance_lines(report)
    again = report.rounds_recorded - report.completed
    if again > 0:
        yield f"{again} were done again after a restart"


def _model(report: AuditReport, *, model_compared: bool) -> Iterator[str]:
    seal = report.seal
    if seal is None:
        yield "NOT SEALED in this log"
        return
    yield f"sealed {_at(seal.sealed.at)}, {seal.size_bytes} bytes, sha256 {seal.sha256}"
    yield f"for {', '.join(seal.recipients)}"
    yield f"{seal.reports} of {len(report.plan.workers)} workers countersigned the end"
    yield (
        "the file in the run directory is that model"
        if model_compared
        else "not compared with any file"
    )


def _refused(report: AuditReport) -> Iterator[str]:
    counted = report.counted
    for number, what in (
        (counted.refusals, "refusals of known parties' nodes (not judged again)"),
        (counted.refusals_unrecorded, "more refusals that came too fast"),
        (counted.withdrawals, "admissions withdrawn"),
        (counted.failures, "times that a server gave up"),
    ):
        if number:
            yield f"{number} {what}"


def _time(report: AuditReport) -> Iterator[str]:
    yield (
        f"{_at(report.opened.at)} to {_at(report.ended.at)}, by the clock of the"
        " server's host"
    )
    newest = max(report.signed_times, key=lambda it: it.at)
    yield f"it was not over before {_at(newest.at)}: {newest.what} was signed then"
    if report.clock_ahead_seconds > 0:
        yield (
            f"CLOCKS DIFFER: a record is dated {report.clock_ahead_seconds:.0f} s after"
            " a custodian had it"
        )


def _rows(name: str, lines: list[str]) -> list[str]:
    return [f"  {name if not n else '':<10}{line}" for n, line in enumerate(lines)]


def _standing_object(standing: Standing) -> Json:
    if not isinstance(standing, Verdict):
        return {"admit": "identity", "party_key": standing.party_key}
    claims = standing.claims
    return {
        "admit": "attested",
        "tee": claims.tee,
        "simulated": claims.simulated,
        "tcb_status": claims.tcb_status,
        "ppid": claims.ppid,
        "platform_instance_id": claims.platform_instance_id,
        "policy_sha256": standing.policy_sha256,
        "collateral_issued_at": _seconds(claims.collateral_issued_at),
    }


def _moment_object(moment: Moment | None) -> Json | None:
    return None if moment is None else _place(moment)


def _place(moment: Moment) -> Json:
    return {"record": moment.record, "at": _seconds(moment.at)}


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%SZ}"
