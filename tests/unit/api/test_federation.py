"""What a federation refuses before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax
from tests.support.plan_tree import plan_tree, toml_of

import cloister.api
from cloister.api import Federation
from cloister.api.data import PartyData
from cloister.errors import ConfigError

OPTIONS = {"features": 2, "classes": 2}


def records() -> PartyData:
    return {"label": np.zeros(4, np.uint8), "image": np.zeros((4, 2), np.uint8)}


def test_the_public_names_are_these() -> None:
    assert sorted(cloister.api.__all__) == [
        "Federation",
        "PartyData",
        "Round",
        "Settings",
        "Trained",
        "deal_in_turn",
        "open_format",
        "open_sealed",
    ]


def test_a_federation_needs_a_worker() -> None:
    with pytest.raises(ConfigError) as caught:
        Federation.local({}, task=Softmax, options=OPTIONS)
    assert caught.value.code == "parties-missing"


def test_who_is_outside_is_one_of_the_workers() -> None:
    with pytest.raises(ConfigError) as caught:
        Federation.local(
            {"bob": records()}, task=Softmax, options=OPTIONS, outside={"eve"}
        )
    assert (caught.value.code, caught.value.got) == ("party-unknown", "eve")


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    with (
        Federation.local(
            {"bob": records()}, task=Softmax, options=OPTIONS, directory=tmp_path
        ) as federation,
        pytest.raises(TypeError, match="'round'"),
    ):
        federation.fit(round=5)  # type: ignore[call-arg]
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_no_plan_may_have_leaves_nothing(tmp_path: Path) -> None:
    with (
        Federation.local(
            {"bob": records()}, task=Softmax, options=OPTIONS, directory=tmp_path
        ) as federation,
        pytest.raises(ConfigError, match="schedule"),
    ):
        federation.fit(schedule={"name": 3})
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_goes_with_the_context() -> None:
    with Federation.local(
        {"bob": records()}, task=Softmax, options=OPTIONS
    ) as federation:
        directory = federation.directory
        assert directory.is_dir()
    assert not directory.exists()


def test_a_plan_of_which_nothing_runs_here_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(plan_tree()))
    with pytest.raises(ConfigError) as caught:
        Federation.from_plan(path)
    assert caught.value.code == "site-missing"


def test_a_local_fit_is_always_a_run_of_its_own(tmp_path: Path) -> None:
    with (
        Federation.local(
            {"bob": records()}, task=Softmax, options=OPTIONS, directory=tmp_path
        ) as federation,
        pytest.raises(ConfigError) as caught,
    ):
        federation.fit(fresh=True)
    assert caught.value.code == "settings-unused"
    assert list(tmp_path.iterdir()) == []
