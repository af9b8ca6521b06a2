"""``cloister quote``: shows what a quote says, or verifies that it is genuine.

A refusal is a result here and not only an error: with ``--json`` it stands on stdout as
an object of its own, and the exit status is 3.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cloister.attestation.claims import Claims
from cloister.attestation.collateral import parse_collateral
from cloister.attestation.policy import Policy, examine
from cloister.attestation.trust_root import (
    TrustRoot,
    intel_trust_root,
    preproduction_trust_root,
    simulated_trust_root,
)
from cloister.attestation.verify import verify_evidence
from cloister.cli.exit_codes import ExitCode
from cloister.cli.output import Json, show_error, write_json
from cloister.cli.quote_file import (
    Layout,
    PresentedQuote,
    read_bytes,
    read_quote_file,
)
from cloister.cli.quote_report import (
    appraisal_object,
    claims_object,
    claims_text,
    evidence_object,
    evidence_text,
    refusal_object,
)
from cloister.errors import AppraisalError, VerificationError
from cloister.plan.policy_file import read_policy

# Whatever kind of root a file can be; hardware is built in and never a file.
ROOT_KINDS = {
    "simulated": simulated_trust_root,
    "preproduction": preproduction_trust_root,
}
# The last second of the year 9999.
_LAST_TIME = 253_402_300_799

_quote_argument = click.argument(
    "quote_path", metavar="QUOTE", type=click.Path(path_type=Path)
)


@click.group("quote")
def command() -> None:
    """Show a quote, or verify it."""


@command.command("show")
@_quote_argument
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def show(*, quote_path: Path, as_json: bool) -> None:
    """Show what QUOTE says. Nothing of it is verified.

    QUOTE is a quote, or a certificate in PEM or DER that carries one.
    """
    quote = read_quote_file(quote_path).shown()
    if as_json:
        write_json(evidence_object(quote.evidence, layout=quote.layout))
    else:
        click.echo("\n".join(evidence_text(quote.evidence, layout=quote.layout)))


@command.command("verify")
@_quote_argument
@click.option(
    "--collateral",
    "collateral_path",
    metavar="FILE.json",
    type=click.Path(path_type=Path),
    required=True,
    help="What Intel's services say of the platform.",
)
@click.option(
    "--at",
    "unix_time",
    metavar="UNIX_TIME",
    type=click.IntRange(0, _LAST_TIME),
    help="Verify for this time  [default: now]",
)
@click.option(
    "--root-ca",
    "root_path",
    metavar="FILE.der",
    type=click.Path(path_type=Path),
    help="Trust this root instead of Intel's; never hardware.",
)
@click.option("--root-kind", type=click.Choice(list(ROOT_KINDS)), help="Its kind.")
@click.option(
    "--policy",
    "policy_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also ask whether it is wanted: a policy, or a dynamic_config.json.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def verify(  # noqa: PLR0913 - one for each option
    *,
    quote_path: Path,
    collateral_path: Path,
    unix_time: int | None,
    root_path: Path | None,
    root_kind: str | None,
    policy_path: Path | None,
    as_json: bool,
) -> None:
    """Verify that QUOTE is genuine, and with --policy that it is wanted.

    QUOTE is a quote, or a certificate in PEM or DER that carries one for its own key.
    Without a policy a debug or outdated environment is genuine all the same; a legacy
    certificate, of Gramine before 1.8, is read only where a policy asks for it.
    """
    root = _root(root_path, root_kind)
    policy = None if policy_path is None else read_policy(policy_path, root=root.name)
    at = datetime.now(UTC) if unix_time is None else _moment(unix_time)
    file, collateral = read_quote_file(quote_path), read_bytes(collateral_path)
    try:
        quote = file.presented_under(policy)
        claims = _verified(quote, collateral=collateral, root=root, at=at)
    except VerificationError as refusal:
        if as_json:
            write_json(refusal_object(refusal))
        click.echo("NOT GENUINE", err=True)
        show_error(refusal, as_json=False)
        raise click.exceptions.Exit(ExitCode.VERIFICATION) from refusal
    _tell(claims, policy, layout=quote.layout, as_json=as_json)


def _verified(
    quote: PresentedQuote, *, collateral: bytes, root: TrustRoot, at: datetime
) -> Claims:
    claims = verify_evidence(
        quote.evidence, collateral=parse_collateral(collateral), root=root, at=at
    )
    quote.check_bound(claims.report_data)
    return claims


def _tell(
    claims: Claims, policy: Policy | None, *, layout: Layout | None, as_json: bool
) -> None:
    """Shows genuine evidence, and exits with 3 if the policy does not want it."""
    outcomes = None if policy is None else examine(claims, policy)
    if as_json:
        shown: Json = {
            **claims_object(claims),
            "certificate_bound": None if layout is None else True,
            "certificate_layout": layout,
            "appraisal": None
            if policy is None or outcomes is None
            else appraisal_object(policy, outcomes),
        }
        write_json(shown)
    else:
        click.echo("\n".join(claims_text(claims, outcomes, layout=layout)))
    refusals = [it for it in outcomes or () if isinstance(it, AppraisalError)]
    for refusal in refusals:
        show_error(refusal, as_json=False)
    if refusals:
        raise click.exceptions.Exit(ExitCode.VERIFICATION)


def _root(path: Path | None, kind: str | None) -> TrustRoot:
    if (path is None) != (kind is None):
        raise click.UsageError("--root-ca and --root-kind belong together")
    if path is None or kind is None:
        return intel_trust_root()
    return ROOT_KINDS[kind](read_bytes(path))


def _moment(unix_time: int) -> datetime:
    return datetime.fromtimestamp(unix_time, tz=UTC)
