"""The examples are run as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.conftest import LIMIT_SECONDS

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "name", ["softmax", pytest.param("own_strategy", marks=pytest.mark.long)]
)
def test_an_example_trains_three_hospitals(name: str, tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(EXAMPLES / name / "run.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ") for line in done.stdout.splitlines()[-2:])
    assert said["simulated"] == "true"
    assert float(said["accuracy"]) > 0.85
