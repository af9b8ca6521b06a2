"""What `cloister audit verify` says of a custodian's exported log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cloister.cli.audit_report import standing_words
from cloister.cli.output import Json
from cloister.custody.audit_verification import CustodianAuditReport
from cloister.ratls.epochs import key_digest

_SHORT_DIGITS = 16


def custodian_lines(report: CustodianAuditReport) -> list[str]:
    """Returns a good report in words."""
    return [
        f"HOLDS: {report.records} records of the custodian of {report.party}",
        *_rows("key", list(_key(report))),
        *_rows("end", list(_end(report))),
        "",
        *_rows(
            "plans",
            [
                f"{it.plan.run_id}, plan {it.plan_hash.hex()[:_SHORT_DIGITS]}:"
                f" {it.state} since {_at(it.at)}"
                for it in report.consents
            ],
        ),
        *_rows(
            "nodes",
            [
                f"{it.terms.role} of {it.terms.party} in {it.terms.run_id}, epoch"
                f" {it.terms.epoch}: {standing_words(it.standing)}"
                + ("" if it.own else "; came for its share")
                for it in report.nodes
            ],
        ),
        *_rows(
            "released",
            [
                f"{_at(it.at)}: {', '.join(it.release.key_ids)} to the"
                f" {it.release.role} of {it.release.party} in {it.release.run_id},"
                f" epoch {it.release.epoch}"
                for it in report.releases
            ],
        ),
        *_rows(
            "keys",
            [
                f"{it.key_id}, {it.kind}{f' ({it.label})' if it.label else ''}:"
                f" {it.state} since {_at(it.at)}"
                for it in report.keys
            ],
        ),
        *_rows("rewound", list(report.rewound)),
        *_rows(
            "refused",
            [f"{report.refusals} nodes that had proved themselves"]
            if report.refusals
            else [],
        ),
    ]


def custodian_object(report: CustodianAuditReport) -> Json:
    """Returns a good report as machines read it."""
    return {
        "holds": True,
        "kind": "custodian",
        "party": report.party,
        "key": report.key,
        "key_compared": report.key_compared,
        "simulated": report.simulated,
        "records": report.records,
        "head": report.head,
        "from": _seconds(report.began),
        "to": _seconds(report.ended),
        "plans": [
            {
                "run": it.plan.run_id,
                "plan_hash": it.plan_hash.hex(),
                "state": it.state,
                "at": _seconds(it.at),
            }
            for it in report.consents
        ],
        "nodes": [
            {
                "run": it.terms.run_id,
                "role": it.terms.role,
                "party": it.terms.party,
                "epoch": it.terms.epoch,
                "tls_key_sha256": key_digest(it.terms.tls_key).hex(),
                "own": it.own,
                "met": _seconds(it.met),
            }
            for it in report.nodes
        ],
        "releases": [
            {
                "at": _seconds(it.at),
                "run": it.release.run_id,
                "plan_hash": it.release.plan_hash.hex(),
                "role": it.release.role,
                "party": it.release.party,
                "epoch": it.release.epoch,
                "tls_key_sha256": it.release.tls_key_sha256,
                "key_ids": list(it.release.key_ids),
            }
            for it in report.releases
        ],
        "keys": [
            {
                "key_id": it.key_id,
                "kind": it.kind,
                "label": it.label,
                "state": it.state,
                "at": _seconds(it.at),
            }
            for it in report.keys
        ],
        "refusals": report.refusals,
        "rewound": list(report.rewound),
    }


def _key(report: CustodianAuditReport) -> Iterator[str]:
    if report.key_compared:
        yield f"compared with yours: {report.key}"
        return
    yield f"NOT COMPARED with anything you brought: {report.key}"
    yield f"Anybody could have made this log. Ask {report.party} for its key, or give"
    yield f"--key {report.party}=ed25519:..., or the plan (--plan)"


def _end(report: CustodianAuditReport) -> Iterator[str]:
    yield "NOT PROVEN: a party can end its own log early, or make it anew;"
    yield f"compare an earlier or later export with its head, {report.head}"
    if report.simulated:
        yield "SIMULATED plans are in it: what their nodes showed proves nothing"


def _rows(name: str, lines: list[str]) -> list[str]:
    return [f"  {name if not n else '':<10}{line}" for n, line in enumerate(lines)]


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%SZ}"
