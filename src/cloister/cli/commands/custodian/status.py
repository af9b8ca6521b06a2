"""``cloister custodian status``: what a custodian remembers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from cloister.cli.custodians import open_register
from cloister.cli.output import Json, write_json
from cloister.cli.places import read_custodian_place
from cloister.cli.register_tables import (
    KEY_COLUMNS,
    json_of_key,
    key_cells,
    show_table,
    show_time,
)
from cloister.custody.register_rows import MarkRow, PlanRow, WarrantRow
from cloister.ratls.epochs import key_digest

_SHORT_DIGITS = 16


@click.command("status")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the result as JSON.")
def command(*, directory: Path, as_json: bool) -> None:
    """Show a party's signed plans, its newest nodes, how far runs are, and its keys."""
    place = read_custodian_place(directory)
    with open_register(place) as register:
        plans, marks = register.plans(), register.marks()
        newest, keys = _newest(register.warrants()), register.kept_keys()
    if as_json:
        write_json(
            {
                "party": place.party,
                "address": place.site.address,
                "plans": [_plan(row) for row in plans],
                "nodes": [_node(row) for row in newest],
                "marks": [_mark(row) for row in marks],
                "keys": [json_of_key(row) for row in keys],
            }
        )
    else:
        console = Console(stderr=True, highlight=False)
        console.print(f"custodian of {place.party}, at {place.site.address}")
        _show(console, plans, newest, marks)
        show_table(console, "keys", KEY_COLUMNS, [key_cells(row) for row in keys])


def _newest(rows: Sequence[WarrantRow]) -> list[WarrantRow]:
    """Returns the highest epoch of each run and role; rows come by epoch."""
    return list({(row.run_id, row.role): row for row in rows}.values())


def _show(
    console: Console,
    plans: Sequence[PlanRow],
    nodes: Sequence[WarrantRow],
    marks: Sequence[MarkRow],
) -> None:
    for title, columns, rows in (
        (
            "plans",
            ("run", "plan", "state", "since"),
            [
                (
                    it.run_id,
                    it.plan_hash.hex()[:_SHORT_DIGITS],
                    it.state,
                    show_time(it.at),
                )
                for it in plans
            ],
        ),
        (
            "newest nodes",
            ("run", "role", "epoch", "warranted", "until"),
            [
                (
                    it.run_id,
                    it.role,
                    str(it.epoch),
                    show_time(it.issued_at),
                    show_time(it.expires_at),
                )
                for it in nodes
            ],
        ),
        (
            "marks",
            ("run", "round", "state", "server epoch", "at"),
            [
                (
                    it.run_id,
                    str(it.round),
                    it.state.hex()[:_SHORT_DIGITS],
                    str(it.server_epoch),
                    show_time(it.at),
                )
                for it in marks
            ],
        ),
    ):
        show_table(console, title, columns, rows)


def _plan(row: PlanRow) -> Json:
    return {
        "run": row.run_id,
        "hash": row.plan_hash.hex(),
        "state": row.state,
        "at": row.at,
    }


def _node(row: WarrantRow) -> Json:
    return {
        "run": row.run_id,
        "role": row.role,
        "epoch": row.epoch,
        "key_sha256": key_digest(row.tls_key).hex(),
        "plan_hash": row.plan_hash.hex(),
        "issued_at": row.issued_at,
        "expires_at": row.expires_at,
    }


def _mark(row: MarkRow) -> Json:
    return {
        "run": row.run_id,
        "round": row.round,
        "state": row.state.hex(),
        "server_epoch": row.server_epoch,
        "server_key_sha256": row.server_key.hex(),
        "at": row.at,
    }
