"""Any process is killed at any time, and training goes on to the very same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"
LIMIT_SECONDS = 900.0
KILLS = 20


def processes_in(directory: Path) -> list[str]:
    """Returns the command lines of all processes that speak of a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if str(directory) in command:
            found.append(command)
    return found


@pytest.mark.long
def test_the_model_is_the_same_to_the_bit_whoever_is_killed_and_when(
    tmp_path: Path,
) -> None:
    """In sync-sgd; deaths in FedAvg are in `test_servers_that_die`."""
    directory = tmp_path / "runs"
    directory.mkdir()
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(CHAOS), "--json", "--kills", str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "TMPDIR": str(directory)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes_in(directory) == []
    assert list(directory.iterdir()) == []
    found = json.loads(done.stdout)
    assert found["bit_identical"] is True
    assert found["failures"] == []
    assert found["kills"] >= KILLS
    assert found["restarts"] >= KILLS
    assert found["namespaces"] == (8 if os.geteuid() == 0 else 0)
    for words in found["recovery_seconds"].values():
        assert words["count"] > 0
