"""Makes docs/results.md: trains what it shows, or some of it, and writes the page.

Each row is kept as JSON when it is done, and the page is made of all rows that are
kept: so rows may be made at different times, and on different machines.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from reporting import report
from results_order import ROOT, Order
from results_row import page, read_rows, write_row
from results_rows import ROWS

KEPT = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "results.md"


def make(names: list[str], order: Order, *, kept: Path, as_json: bool) -> None:
    """Makes some rows, one after the other, and keeps each."""
    for name in names:
        row = ROWS[name](order)
        write_row(row, kept)
        report(row.title, row.figures, as_json=as_json)


def main() -> None:
    """Makes rows and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--only", action="append", choices=tuple(ROWS), help="a row; repeat for more"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data",
        help="holds cifar-10/ and mnist/ (docs/how-to/data.md)  [default: data/]",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few rounds; writes no page, prints it"
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="train nothing: make the page of what is kept",
    )
    arguments = parser.parse_args()
    order = Order(data=arguments.data.resolve(), quick=arguments.quick)
    names = [] if arguments.page else arguments.only or list(ROWS)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as scratch:
            kept = Path(scratch)
            make(names, order, kept=kept, as_json=arguments.json)
            print(page(read_rows(kept, tuple(ROWS))))
        return
    make(names, order, kept=KEPT, as_json=arguments.json)
    PAGE.write_text(page(read_rows(KEPT, tuple(ROWS))))


if __name__ == "__main__":
    main()
