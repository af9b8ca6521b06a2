"""The results at reduced size: rows are made, and the page of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.shards_in_memory import write_made_cifar

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results.py"


@pytest.mark.long
def test_rows_are_trained_and_make_a_page(tmp_path: Path) -> None:
    write_made_cifar(tmp_path / "cifar-10", train=400, held_out=100, seed=7)
    rows = ("digits", "cifar-10-speed")
    only = [word for row in rows for word in ("--only", row)]
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(RESULTS), "--quick", "--data", str(tmp_path), *only],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    page = done.stdout[done.stdout.index("# Results") :]
    for row in rows:
        assert f"| row | `{row}` |" in page
    assert "400 to train, 100 held out, dealt to 2 workers" in page
    assert "projection: an epoch of all 50,000 images" in page
    assert page.count("Cut short") == len(rows)
    # So few rounds show nothing, and claim nothing.
    assert "reached" not in page
    assert "missed" not in page
