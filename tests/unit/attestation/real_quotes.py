"""The folder of real quotes, where it lies beside the repository."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# A worktree elsewhere says where the folder is; nothing but tests reads this.
SHARED = Path(os.environ.get("CLOISTER_SHARED", Path(__file__).parents[4] / "shared"))
QUOTES = SHARED / "quotes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealQuote:
    """A row of the folder's table.

    Attributes:
        name: Folder of the quote.
        version: Its format.
        body_type: Type of its body where a descriptor says it, else None.
        tee: Kind of environment.
        fmspc: Platform family, as the table has it.
        collateral: Name of the collateral set; None where it is for parsing only.
        at: When it was verified; None likewise.
        flags: What is remarkable about it.
        status: Expected status; empty where it is for parsing only.
        advisory_ids: Expected advisories, sorted.
    """

    name: str
    version: int
    body_type: int | None
    tee: str
    fmspc: str
    collateral: str | None
    at: datetime | None
    flags: str
    status: str
    advisory_ids: tuple[str, ...]

    @property
    def quote(self) -> bytes:
        return (QUOTES / self.name / "quote.bin").read_bytes()

    @property
    def collateral_json(self) -> bytes:
        return (QUOTES / "_collateral_sets" / f"{self.collateral}.json").read_bytes()


def real_quotes() -> list[RealQuote]:
    """Returns all rows with a quote; none where there is no folder."""
    table = QUOTES / "README.md"
    lines = table.read_text().splitlines() if table.exists() else []
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in lines]
    return [
        _row(row)
        for row in rows
        if len(row) > 8 and row[0] and (QUOTES / row[0] / "quote.bin").is_file()
    ]


def judged_quotes() -> list[RealQuote]:
    """Returns the rows with collateral and an expected result."""
    return [row for row in real_quotes() if row.collateral is not None]


def _row(row: list[str]) -> RealQuote:
    version, _, body = row[2].removeprefix("v").partition(" body")
    judged = re.fullmatch(r"(\S+) @ (\d+)", row[5])
    status, _, advisories = row[7].partition(" ")
    return RealQuote(
        name=row[0],
        version=int(version),
        body_type=int(body) if body else None,
        tee=row[3].lower(),
        fmspc=row[4],
        collateral=judged[1] if judged else None,
        at=datetime.fromtimestamp(int(judged[2]), tz=UTC) if judged else None,
        flags=row[6],
        status=status if judged else "",
        advisory_ids=tuple(sorted(filter(None, advisories.split(",")))),
    )
