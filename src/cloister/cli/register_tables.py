"""What commands show of a register: tables for people, objects for machines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table

from cloister.cli.output import Json
from cloister.custody.register_rows import KeyRow

KEY_COLUMNS: Final = ("kind", "label", "state", "since", "key")


def show_table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Shows a table with its title, or says that there is nothing in it."""
    console.print()
    if not rows:
        console.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def key_cells(row: KeyRow) -> tuple[str, ...]:
    """Returns a key as a row of `KEY_COLUMNS`; its name whole, for plans need it."""
    return row.kind, row.label, row.state, show_time(row.at), row.key_id


def json_of_key(row: KeyRow) -> Json:
    """Returns a key for machines."""
    return {
        "key": row.key_id,
        "kind": row.kind,
        "label": row.label,
        "state": row.state,
        "created_at": row.created_at,
        "at": row.at,
    }


def show_time(seconds: int) -> str:
    """Returns Unix time as people read it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"
