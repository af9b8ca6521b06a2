from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from examples.own_strategy import strategy as lamb
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.model_state import ModelState
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.plan_code import MAX_SOURCE_BYTES
from cloister.federation.strategies.optimizers import Vector
from cloister.federation.strategies.strategy import Strategy
from cloister.federation.strategy_loading import load_strategy, read_strategy_source
from cloister.plan.values import Option

SOURCE = Path(lamb.__file__).read_bytes()


def load(
    source: bytes,
    *,
    class_name: str = "Lamb",
    options: dict[str, Option] | None = None,
    simulated: bool = True,
) -> Strategy:
    return load_strategy(
        source,
        filename="strategy.py",
        class_name=class_name,
        options=options or {},
        simulated=simulated,
    )


def refusal(source: bytes, *, simulated: bool = True) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(source, simulated=simulated)
    return caught.value


class GivenMean:
    """A mean that was computed before."""

    def __init__(self, values: Vector) -> None:
        self.values = values

    def mean(self, start: int, stop: int) -> Vector:
        return self.values[start:stop]

    def statistics(self) -> NDArray[np.float64]:
        return np.empty(0)


def test_the_example_steps_as_its_paper_says() -> None:
    """In float64, array by array, beside the engine's float32."""
    generator = np.random.default_rng(3)
    start = {"w": generator.normal(size=(4, 5)), "b": np.zeros(6)}
    model = ModelBuffer(layout_of(start, {}))
    model.fill(start)
    options: dict[str, Option] = {"beta2": 0.9, "weight_decay": 0.1}
    state = ModelState(
        model,
        OwnStrategy(
            strategy=load(SOURCE, options=options),
            filename="strategy.py",
            simulated=True,
        ),
    )
    w = {
        name: array.astype(np.float32).astype(np.float64)
        for name, array in start.items()
    }
    m, v = ({name: 0 * array for name, array in w.items()} for _ in range(2))
    with ThreadPoolExecutor(1) as threads:
        for number in range(1, 11):
            mean = generator.normal(size=26).astype(np.float32)
            state.step(
                GivenMean(mean),
                rate=0.01,
                round_number=number,
                threads=threads,
                count=1,
            )
            for name, part in (("w", mean[:20].reshape(4, 5)), ("b", mean[20:])):
                g = part.astype(np.float64)
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.9 * v[name] + 0.1 * g * g
                root = np.sqrt(v[name] / (1 - 0.9**number)) + 1e-6
                step = m[name] / (1 - 0.9**number) / root
                step = step + (0.1 * w[name] if name == "w" else 0.0)
                norm = np.linalg.norm(w[name])
                ratio = norm / np.linalg.norm(step) if norm else 1.0
                w[name] = w[name] - 0.01 * ratio * step
    for name, array in model.arrays().items():
        np.testing.assert_allclose(array, w[name], rtol=2e-5, atol=1e-6)


def test_a_file_that_fails_is_named_with_its_line() -> None:
    error = refusal(b"x = 1\nraise ValueError('Ada, 1815')\n", simulated=False)
    assert error.code == "strategy-failed"
    assert error.what == "strategy.py failed while loading the file"
    assert error.got == "ValueError at line 2"
    assert "strategy" in error.remedy


def test_a_missing_class_is_answered_with_those_there_are() -> None:
    error = refusal(b"class Lars: pass\n")
    assert error.code == "strategy-class"
    assert error.got == "Lars"
    assert "[training] optimizer" in error.expected


def test_a_class_that_is_no_strategy_says_what_it_lacks() -> None:
    error = refusal(b"class Lamb:\n    def initial(self, parameters): pass\n")
    assert error.code == "strategy-class"
    assert error.got == "none called step"


def test_options_the_class_does_not_take_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load(SOURCE, options={"gamma": 0.1})
    assert caught.value.code == "strategy-failed"
    assert caught.value.what == "strategy.py failed while making Lamb"


def test_a_strategy_and_a_task_are_modules_of_their_own_names() -> None:
    assert type(load(SOURCE)).__module__ == "cloister_strategy"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_strategy_source(tmp_path / "strategy.py")
    assert caught.value.code == "strategy-unreadable"
    assert str(tmp_path) in caught.value.expected


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "strategy.py"
    path.write_bytes(bytes(MAX_SOURCE_BYTES))
    assert len(read_strategy_source(path)) == MAX_SOURCE_BYTES
    path.write_bytes(bytes(MAX_SOURCE_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        read_strategy_source(path)
    assert caught.value.code == "strategy-too-large"
