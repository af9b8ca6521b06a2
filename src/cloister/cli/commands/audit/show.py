"""``cloister audit show``: what happened, one line for each thing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloister.cli.audit_source import AuditSource, find_log
from cloister.cli.audit_words import rounds_words, words_of
from cloister.cli.custodian_audit_words import custodian_words_of
from cloister.cli.output import Json, write_json
from cloister.custody.audit_records import AnyCustodianEntry, CustodianEntry
from cloister.custody.audit_verification import verify_custodian_audit
from cloister.federation.audit_records import AnyEntry, RoundCompleted, parse_entry
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.storage.audit_chain import Link

_SIMULATED = " SIMULATED: nothing in it was confidential."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """What is shown of one record, or of rounds that follow each other.

    Attributes:
        round: The record, where it is of a round.
    """

    first: int
    last: int
    at: datetime
    who: str
    what: str
    round: RoundCompleted | None


@click.command("show")
@click.argument("path", metavar="RUN_DIR|FILE", type=click.Path(path_type=Path))
@click.option("--rounds", "each_round", is_flag=True, help="Show every single round.")
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, path: Path, each_round: bool, as_json: bool) -> None:
    """Tell what happened in a run, or at a custodian.

    Nothing is shown that does not hold. Whose keys the log names is not compared with
    anything, and its end is not proven: see `cloister audit verify`.
    """
    source = find_log(path)
    party = source.custodian()
    summary, lines = _run(source) if party is None else _custodian(source)
    if not each_round:
        lines = _folded(lines)
    if as_json:
        shown: list[Json] = [_object(it) for it in lines]
        write_json({"verified": True, "records": shown})
    else:
        _show(summary, lines)


def _run(source: AuditSource) -> tuple[str, list[_Line]]:
    read: list[Link] = []
    report = verify_audit(_noting(source.links(), read), anchors=Anchors())
    simulated = (
        " SIMULATED: nothing in it was confidential." if report.plan.simulated else ""
    )
    return (
        f"Run {report.plan.run_id}, verified: chain, signatures and evidence hold."
        f"{simulated}",
        [_line(link, parse_entry(link.entry)) for link in read],
    )


def _custodian(source: AuditSource) -> tuple[str, list[_Line]]:
    read: list[Link] = []
    report = verify_custodian_audit(_noting(source.links(), read), key=None)
    return (
        f"Custodian of {report.party}, verified: chain, signatures and evidence hold."
        + (_SIMULATED if report.simulated else ""),
        [
            _line(link, msgspec.json.decode(link.entry, type=AnyCustodianEntry))
            for link in read
        ],
    )


def _noting(links: Iterator[Link], read: list[Link]) -> Iterator[Link]:
    """Yields links and keeps them: what is shown is what was verified."""
    for link in links:
        yield link
        read.append(link)


def _line(link: Link, entry: AnyEntry | AnyCustodianEntry) -> _Line:
    who, what = (
        custodian_words_of(entry)
        if isinstance(entry, CustodianEntry)
        else words_of(entry)
    )
    return _Line(
        first=link.seq,
        last=link.seq,
        at=datetime.fromtimestamp(link.at_ms / 1000, UTC),
        who=who,
        what=what,
        round=entry if isinstance(entry, RoundCompleted) else None,
    )


def _folded(lines: list[_Line]) -> list[_Line]:
    """Returns lines where rounds that follow each other are one."""
    folded: list[_Line] = []
    # The log was verified: rounds with no other record between them follow each other.
    for _, group in itertools.groupby(lines, key=lambda line: line.round is None):
        same = list(group)
        rounds = [line.round for line in same if line.round is not None]
        if not rounds:
            folded += same
            continue
        who, what = rounds_words(rounds)
        folded.append(
            _Line(
                first=same[0].first,
                last=same[-1].last,
                at=same[-1].at,
                who=who,
                what=what,
                round=None,
            )
        )
    return folded


def _show(summary: str, lines: list[_Line]) -> None:
    click.echo(summary)
    click.echo(
        "The keys in it were not compared with anything, and its end is not proven:"
        " see `cloister audit verify`."
    )
    click.echo("Times are UTC, by the clock of whoever wrote the log.")
    table = Table(box=None, pad_edge=False)
    for name in ("record", "time", "who", "what happened"):
        # Digests are longer than a column; none of them may be cut off.
        table.add_column(name, no_wrap=name in {"record", "time"}, overflow="fold")
    for line in lines:
        # As text: a log's words are no markup.
        table.add_row(
            *map(
                Text,
                (_numbers(line), f"{line.at:%Y-%m-%d %H:%M:%S}", line.who, line.what),
            )
        )
    Console(highlight=False).print(table)


def _numbers(line: _Line) -> str:
    return str(line.first) if line.first == line.last else f"{line.first}-{line.last}"


def _object(line: _Line) -> Json:
    return {
        "first": line.first,
        "last": line.last,
        "at": int(line.at.timestamp()),
        "who": line.who,
        "what": line.what,
    }
