"""The examples are run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.convergence.test_secure_averaging import (
    ALICE,
    BOB,
    FINAL_LOSS,
    PREDICTIONS,
)
from tests.integration.conftest import LIMIT_SECONDS, cloister

from cloister.cli.places import AUDIT_NAME, MODEL_NAME

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """The run of one example: what it said and showed, and its plan."""

    said: dict[str, str]
    shown: str
    plan: Path


def run(
    name: str, directory: Path, *, limit_seconds: float = LIMIT_SECONDS
) -> tuple[dict[str, str], str]:
    """Runs an example; returns what it says on stdout, and what it shows of the run."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(EXAMPLES / name / "run.py"), str(directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_seconds,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line]
    said = dict(lines)
    assert said["simulated"] == "True"
    return said, done.stderr


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("softmax", 0.85),
        ("own_strategy", 0.85),
        ("breast_cancer", 0.95),
    ],
)
@pytest.mark.long
def test_an_example_trains_three_hospitals(
    name: str, least: float, tmp_path: Path
) -> None:
    said, _ = run(name, tmp_path / "run")
    assert float(said["accuracy"]) > least


@pytest.mark.long
def test_spot_instances_that_are_lost_change_no_bit(tmp_path: Path) -> None:
    # Two runs, and seven processes that are started again.
    said, shown = run(
        "spot_instances", tmp_path / "run", limit_seconds=5 * LIMIT_SECONDS
    )
    assert said["same losses"] == said["same model"] == "True"
    assert int(said["kills"]) == 7
    assert int(said["rounds compared"]) >= 400 - 2  # the server was killed twice
    assert "west and aggregator away" in shown
    assert "<svg" in Path(said["figure"]).read_text()


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Averaged:
    directory = tmp_path_factory.mktemp("averaged") / "run"
    said, shown = run("secure_averaging", directory)
    [plan] = directory.rglob("plan.toml")
    return Averaged(said=said, shown=shown, plan=plan)


@pytest.mark.long
def test_secure_averaging_prints_the_articles_24_numbers(averaged: Averaged) -> None:
    said, shown = averaged.said, averaged.shown
    for owner, losses in (("bob", BOB), ("alice", ALICE)):
        printed = re.findall(rf"^  {owner}: loss (\S+)$", shown, re.MULTILINE)
        assert [float(it) for it in printed] == pytest.approx(losses, abs=1e-4)
    predictions = [float(it) for it in said["predictions"].split()]
    assert predictions == pytest.approx(PREDICTIONS, abs=1e-4)
    assert float(said["loss"]) == pytest.approx(FINAL_LOSS, abs=1e-4)
    # They were for their owners to see, not for a log on a host.
    logs = list(averaged.plan.parent.rglob("*.jsonl"))
    assert len(logs) >= 5
    for log in logs:
        assert "printed" not in log.read_text()


@pytest.mark.long
def test_a_server_starts_from_no_other_weights_than_the_plans(
    averaged: Averaged,
) -> None:
    """By the plan of the example's run, as if it had not been done."""
    [sealed] = averaged.plan.parent.rglob(MODEL_NAME)
    done_before = [sealed, sealed.with_name(AUDIT_NAME)]
    for path in done_before:
        path.rename(path.with_suffix(".kept"))
    weights = averaged.plan.with_name("start.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = cloister("server", "--plan", str(averaged.plan))
    weights.write_bytes(content)
    for path in done_before:
        path.with_suffix(".kept").rename(path)
    assert done.returncode == 4, done.stderr
    assert "is not the initial model that the plan pins" in done.stderr
    assert "waiting" not in done.stderr  # for its custodian: it asked for no warrant
