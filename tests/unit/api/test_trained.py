"""What is kept of a run's events, and what a run gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.plan_tree import plan_tree, toml_of

from cloister.api.trained import HistoryKeeper, Trained
from cloister.errors import ConfigError
from cloister.plan.plan import parse_plan
from cloister.storage.model_vault import OpenedModel


def keeper() -> HistoryKeeper:
    found = HistoryKeeper("server")
    for number in (1, 2):
        found(
            {
                "event": "round",
                "party": "server",
                "round": number,
                "loss": None if number == 2 else 0.5,
                "learning_rate": 0.1,
                "seconds": 0.25,
                "bytes_sent": 7,
            }
        )
    return found


def evaluated(number: int, *, party: str = "server") -> dict[str, object]:
    return {
        "event": "evaluation",
        "party": party,
        "round": number,
        "metrics": {"accuracy": 0.25 * number},
    }


def trained(history: HistoryKeeper, model: OpenedModel | None) -> Trained:
    return Trained(
        plan=parse_plan(toml_of(plan_tree())),
        plan_path=Path("plan.toml"),
        history=history.history(),
        run_directory=Path("run"),
        model=model,
        audit=None,
    )


def test_a_history_has_the_servers_rounds_and_nobody_elses() -> None:
    kept = keeper()
    kept(evaluated(2))
    kept(evaluated(1, party="alice"))
    kept({**evaluated(1), "service": "custodian"})
    kept({"event": "listening", "party": "server"})
    first, second = kept.history()
    assert (first.number, first.loss, first.metrics) == (1, 0.5, {})
    assert (second.number, second.loss) == (2, None)
    assert second.metrics == {"accuracy": 0.5}


def test_the_metrics_are_those_sealed_with_the_model() -> None:
    model = OpenedModel(
        arrays={"weight": np.ones(2)},
        metadata={"metric.accuracy": "0.75", "simulated": "true"},
        sha256=64 * "0",
    )
    found = trained(keeper(), model)
    assert found.metrics == {"accuracy": 0.75}
    assert list(found.arrays) == ["weight"]
    assert found.simulated


def test_without_the_model_the_metrics_are_the_last_that_were_told() -> None:
    kept = keeper()
    kept(evaluated(1))
    kept(evaluated(2))
    assert trained(kept, None).metrics == {"accuracy": 0.5}


def test_a_model_that_is_elsewhere_is_not_made_up() -> None:
    found = trained(keeper(), None)
    for ask in (lambda: found.arrays, lambda: found.metrics):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert caught.value.code == "model-not-here"
