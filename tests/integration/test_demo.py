"""The demo: what a newcomer runs first, and what outside checks call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tests.integration.conftest import cloister

# ResNet-56 v2 for CIFAR-10, as in the reference.
REFERENCE_PARAMETERS = 855_834


def demo(directory: Path, *arguments: str) -> dict[str, object]:
    done = cloister("demo", "--dir", str(directory), "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert "SIMULATED TEE" in done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_demo_trains_seals_opens_and_says_that_it_is_simulated(
    tmp_path: Path,
) -> None:
    result = demo(tmp_path / "demo", "--rounds", "2")
    assert result["simulated"] is True
    assert result["rounds"] == 2
    assert result["parties"] == ["aggregator", "alice", "bob"]
    assert result["opened_accuracy"] == result["accuracy"]
    assert result["audit_unproven_records"] == 0
    assert Path(str(result["sealed_model"])).parent == Path(str(result["run_dir"]))
    output = tmp_path / "model.safetensors"
    opened = cloister(
        "model",
        "open",
        str(result["run_dir"]),
        "--identity",
        str(result["identity"]),
        "-o",
        str(output),
    )
    assert opened.returncode == 0, opened.stderr
    trained = {
        name: array
        for name, array in load_file(output).items()
        if "running_" not in name and "num_batches" not in name
    }
    assert sum(array.size for array in trained.values()) == REFERENCE_PARAMETERS


def test_a_demo_on_missing_data_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "demo"
    done = cloister(
        "demo", "--dir", str(target), "--data", str(tmp_path / "none"), "--json"
    )
    assert done.returncode == 2
    assert "none" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_demo_reaches_its_accuracy_on_digits(tmp_path: Path) -> None:
    result = demo(tmp_path / "demo")
    accuracy = result["accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy >= 0.96
    assert result["opened_accuracy"] == accuracy
