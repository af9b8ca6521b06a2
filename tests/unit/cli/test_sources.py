"""The source files beside a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.plan_tree import plan_tree, toml_of, with_strategy

from cloister.cli.nodes import load_own_strategy
from cloister.cli.sources import Sources, read_sources
from cloister.errors import ConfigError
from cloister.federation.plan_code import MAX_SOURCE_BYTES
from cloister.plan.plan import parse_plan

PLAIN = parse_plan(toml_of(plan_tree()))
OWN = parse_plan(toml_of(with_strategy(plan_tree())))
TASK = b"class Task: ...\n"
STRATEGY = b"""\
class Own:
    def initial(self, parameters):
        return {}

    def step(self, parameters, state, *, mean, rate, round_number):
        return parameters, state
"""


def write(directory: Path, *, strategy: bytes | None) -> Path:
    (directory / "task.py").write_bytes(TASK)
    if strategy is not None:
        (directory / "strategy.py").write_bytes(strategy)
    return directory


def test_a_plan_without_a_strategy_of_its_own_has_one_source(tmp_path: Path) -> None:
    # A file that the plan does not name is nothing to it.
    sources = read_sources(PLAIN, write(tmp_path, strategy=STRATEGY))
    assert sources.measured == (TASK,)
    assert load_own_strategy(PLAIN, sources) is None


def test_its_own_strategy_is_measured_after_the_task(tmp_path: Path) -> None:
    sources = read_sources(OWN, write(tmp_path, strategy=STRATEGY))
    assert sources.measured == (TASK, STRATEGY)


def test_an_empty_strategy_is_measured_as_well() -> None:
    assert Sources(task=TASK, strategy=b"").measured == (TASK, b"")


def test_a_missing_strategy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sources(OWN, write(tmp_path, strategy=None))
    assert caught.value.code == "strategy-unreadable"
    assert "strategy.py" in caught.value.expected


def test_an_oversized_strategy_is_refused(tmp_path: Path) -> None:
    write(tmp_path, strategy=b"#" * MAX_SOURCE_BYTES)
    read_sources(OWN, tmp_path)
    write(tmp_path, strategy=b"#" * (MAX_SOURCE_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        read_sources(OWN, tmp_path)
    assert caught.value.code == "strategy-too-large"


def test_the_strategy_that_runs_is_made_of_the_bytes_that_were_read(
    tmp_path: Path,
) -> None:
    sources = read_sources(OWN, write(tmp_path, strategy=STRATEGY))
    (tmp_path / "strategy.py").write_bytes(b"raise SystemExit\n")
    loaded = load_own_strategy(OWN, sources)
    assert loaded is not None
    assert loaded.initial({}) == {}


def test_a_file_without_the_class_that_the_plan_names_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_own_strategy(OWN, Sources(task=TASK, strategy=b""))
    assert caught.value.code == "strategy-class"
