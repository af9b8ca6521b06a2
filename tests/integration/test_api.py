"""The Python interface: whole runs, in a notebook, and with others elsewhere."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax
from tests.integration.conftest import ROUNDS, Deployment, Event, Start

from cloister.api import Federation, Trained
from cloister.errors import CloisterError, ConfigError

CLASSES, FEATURES = 3, 12
CENTRES = np.random.default_rng(0).uniform(60, 190, (CLASSES, FEATURES))


def clouds(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, 150)
    images = CENTRES[labels] + generator.normal(0, 20, (150, FEATURES))
    return {
        "label": labels.astype(np.uint8),
        "image": images.clip(0, 255).astype(np.uint8),
    }


def fit(directory: Path) -> Trained:
    parties = {"bob": clouds(1), "alice": clouds(2)}
    with Federation.local(
        parties,
        task=Softmax,
        options={"features": FEATURES, "classes": CLASSES},
        outside={"alice"},
        directory=directory,
    ) as federation:
        return federation.fit(
            rounds=4, local_steps=5, batch_size=16, learning_rate=0.5, evaluate_every=2
        )


def test_a_notebook_trains_with_named_parties_and_gets_everything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def cell() -> Trained:
        """A notebook's cells run inside an event loop."""
        return fit(tmp_path)

    trained = asyncio.run(cell())
    assert "SIMULATED TEE" in capfd.readouterr().err
    assert trained.simulated
    assert trained.metrics["accuracy"] > 0.9
    assert [it.number for it in trained.history] == [1, 2, 3, 4]
    assert trained.history[-1].metrics == pytest.approx(trained.metrics)
    assert trained.arrays["weights"].shape == (FEATURES, CLASSES)
    assert trained.audit is not None
    assert trained.audit.unproven == 0
    assert [p.admit for p in trained.plan.workers] == ["attested", "identity"]
    # Every record lies sealed.
    record = clouds(1)["image"][0].tobytes()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or record not in path.read_bytes(), path


@pytest.mark.long
def test_a_plan_runs_with_nodes_that_are_elsewhere(
    copy_deployment: Callable[[str], Deployment], start: Start
) -> None:
    """Bob's machine has his site and custodian alone; this one has the others'."""
    here, there = copy_deployment("here"), copy_deployment("there")
    for directory in ("parties", "custodians"):
        shutil.rmtree(here.directory / directory / "bob")
        for party in ("aggregator", "alice"):
            shutil.rmtree(there.directory / directory / party)
    start("custodian", "serve", str(there.custodian("bob")), "--json")
    start("worker", "--party", "bob", "--plan", str(there.plan), "--json")
    events: list[Event] = []
    with Federation.from_plan(here.plan) as federation:
        with pytest.raises(ConfigError) as caught:
            federation.fit(rounds=3)
        assert caught.value.code == "settings-unused"
        trained = federation.fit(quiet=True, on_event=events.append)
        assert len(trained.history) == ROUNDS
        assert trained.metrics["accuracy"] > 0.8
        assert trained.model is not None
        assert {event["party"] for event in events} == {"aggregator", "alice"}
        with pytest.raises(ConfigError) as caught:
            federation.fit(quiet=True)
        assert caught.value.code == "run-exists"


@pytest.mark.long
def test_a_node_that_fails_ends_the_fit_in_its_own_words(
    deployment: Deployment,
) -> None:
    deployment.data("bob").unlink()
    with (
        Federation.from_plan(deployment.plan) as federation,
        pytest.raises(CloisterError, match=r"bob: .*data\.sealed"),
    ):
        federation.fit(quiet=True)
