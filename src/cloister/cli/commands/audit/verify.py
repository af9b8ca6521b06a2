"""``cloister audit verify``: checks an audit log offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from cloister.cli.audit_report import report_lines, report_object
from cloister.cli.audit_source import AuditSource, find_log, read_head, sha256_of
from cloister.cli.custodian_audit_report import custodian_lines, custodian_object
from cloister.cli.names import check_name
from cloister.cli.output import Json, write_json
from cloister.cli.signing import read_plan_file
from cloister.custody.audit_verification import verify_custodian_audit
from cloister.errors import ConfigError, VerificationError
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors, AuditReport
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.refusals import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class _Brought:
    """What the auditor has from elsewhere."""

    plan: Plan | None
    keys: Mapping[str, str]
    heads: Sequence[Path]

    def key_of(self, party: str) -> str | None:
        """Returns a party's key, as far as it is known."""
        if party in self.keys or self.plan is None:
            return self.keys.get(party)
        return self.plan.find_party(party).key


@click.command("verify")
@click.argument("path", metavar="RUN_DIR|FILE", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_path",
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="The plan that the parties told you of.",
)
@click.option(
    "--key",
    "keys",
    metavar="NAME=ed25519:...",
    multiple=True,
    help="A party's key, as it told you; again for each.",
)
@click.option(
    "--head",
    "head_paths",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="What a custodian knows of the log's end; again for each.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(
    *,
    path: Path,
    plan_path: Path | None,
    keys: Sequence[str],
    head_paths: Sequence[Path],
    as_json: bool,
) -> None:
    """Check a run's audit log, or what a custodian exported, without a network.

    The log comes from a host that nobody trusts. Bring the plan or the parties' keys,
    or it may be all invented; bring custodians' heads, or it may be cut at its end. The
    report says what was compared, and what is not proven.
    """
    brought = _Brought(
        plan=None if plan_path is None else read_plan_file(plan_path).plan,
        keys=_keys(keys),
        heads=head_paths,
    )
    source = find_log(path)
    party = source.custodian()
    shown, lines = (
        _runs(source, brought) if party is None else _custodians(source, brought, party)
    )
    if as_json:
        write_json({**shown, "unfinished_bytes": source.unfinished_bytes})
        return
    click.echo("\n".join(lines))
    if source.unfinished_bytes:
        click.echo(
            f"  The last line is not whole: {source.unfinished_bytes} bytes were not"
            " looked at."
        )


def _runs(source: AuditSource, brought: _Brought) -> tuple[Json, list[str]]:
    report = verify_audit(
        source.links(),
        anchors=Anchors(
            plan_hash=None if brought.plan is None else plan_hash(brought.plan),
            party_keys=brought.keys,
        ),
        heads=[read_head(path) for path in brought.heads],
    )
    compared = _compare_model(source, report)
    return (
        report_object(report, model_compared=compared),
        report_lines(report, model_compared=compared),
    )


def _custodians(
    source: AuditSource, brought: _Brought, party: str
) -> tuple[Json, list[str]]:
    if brought.heads:
        raise ConfigError(
            "a custodian's own log has no head that others keep",
            code="audit-head-unused",
            expected="no --head",
        )
    if others := sorted(set(brought.keys) - {party}):
        # What nothing is compared with must not look as if it were.
        raise ConfigError(
            f"the keys of {', '.join(others)} would be ignored",
            code="audit-key-unused",
            expected=f"the key of {one_line(party)!r}, whose log this is",
        )
    report = verify_custodian_audit(source.links(), key=brought.key_of(party))
    return custodian_object(report), custodian_lines(report)


def _compare_model(source: AuditSource, report: AuditReport) -> bool:
    """Compares the sealed model beside a log, if both are there."""
    if source.model_path is None:
        return False
    found = sha256_of(source.model_path)
    if report.seal is None:
        # Not another model than the log's: whoever sealed it, or put it there, left no
        # word. A server that is killed while it seals leaves such a file, too.
        raise VerificationError(
            f"the log does not name the sealed model {source.model_path}",
            code="audit-model-unnamed",
            expected="no model file beside a log without a seal",
            got=found,
            remedy="Do not use it; move it away, and verify the log again.",
        )
    if found != (expected := report.seal.sha256):
        raise VerificationError(
            f"the sealed model {source.model_path} is not the one in the log",
            code="audit-model",
            expected=expected,
            got=found,
        )
    return True


def _keys(texts: Sequence[str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for text in texts:
        name, found, key = text.partition("=")
        if not found or name in keys:
            raise ConfigError(
                "a party's key is not given as it should be",
                code="audit-key",
                expected="NAME=ed25519:..., each party once",
                got=repr(text[:80]),
            )
        check_name(name)
        keys[name] = key
    return keys
