from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloister.federation.aggregation import OrderedSum
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.updates import Receiver, Update
from cloister.federation.value_limits import FINITE
from cloister.federation.wire_format import Bfloat16, Float32

LAYOUT = layout_of({"w": np.zeros(23)}, {"m": np.zeros(3)})
SMALL_CHUNKS = (Float32(LAYOUT, chunk_bytes=16), Bfloat16(LAYOUT, chunk_bytes=16))
Format = Float32 | Bfloat16


def model_of(seed: int) -> ModelBuffer:
    """Values of many sizes, that bfloat16 has exactly."""
    generator = np.random.default_rng(seed)
    model = ModelBuffer(LAYOUT)
    exponents = generator.integers(-20, 20, 23).astype(np.float32)
    model.parameters[...] = generator.integers(-128, 128, 23) * 2.0**exponents
    model.statistics[...] = generator.standard_normal(3)
    return model


def update_of(model: ModelBuffer, wire: Format = SMALL_CHUNKS[0]) -> Update:
    receiver = Receiver(wire, limits=FINITE)
    for number in range(wire.chunk_count):
        receiver.feed(wire.encode(model, number))
    return receiver.finish()


def plain_mean(
    models: Sequence[ModelBuffer],
) -> tuple[NDArray[np.float32], list[float]]:
    """The loop that anybody would write."""
    parameters = models[0].parameters.copy()
    statistics = models[0].statistics.copy()
    for model in models[1:]:
        parameters = parameters + model.parameters
        statistics = statistics + model.statistics
    count = len(models)
    return parameters / np.float32(count), (statistics / count).tolist()


@given(st.integers(1, 8), st.integers(0, 8), st.sampled_from(SMALL_CHUNKS))
def test_the_mean_is_that_of_the_plain_loop_to_the_bit(
    count: int, added: int, wire: Format
) -> None:
    models = [model_of(seed) for seed in range(count)]
    total = OrderedSum(LAYOUT)
    for model in models[:added]:
        total.add(update_of(model, wire))
    mean = total.closing([update_of(model, wire) for model in models[added:]])
    parameters, statistics = plain_mean(models)
    assert mean.mean(0, 23).tobytes() == parameters.tobytes()
    assert mean.statistics().tolist() == statistics


@given(st.integers(0, 22), st.integers(1, 23), st.integers(0, 3))
def test_any_stretch_of_the_mean_is_the_same(start: int, size: int, added: int) -> None:
    models = [model_of(seed) for seed in range(3)]
    total = OrderedSum(LAYOUT)
    for model in models[:added]:
        total.add(update_of(model))
    mean = total.closing([update_of(model) for model in models[added:]])
    stop = min(23, start + size)
    assert np.array_equal(mean.mean(start, stop), mean.mean(0, 23)[start:stop])


def test_a_sum_is_used_again_and_keeps_nothing_of_the_last_round() -> None:
    total = OrderedSum(LAYOUT)
    for first in (0, 2):
        models = [model_of(first), model_of(first + 1)]
        for model in models:
            total.add(update_of(model))
        assert total.count == 2
        assert np.array_equal(total.closing().mean(0, 23), plain_mean(models)[0])
        total.reset()
        assert total.count == 0


def test_pending_updates_are_read_and_not_added() -> None:
    total = OrderedSum(LAYOUT)
    total.add(update_of(model_of(0)))
    pending = update_of(model_of(1))
    mean = total.closing([pending])
    assert np.array_equal(mean.mean(0, 23), mean.mean(0, 23))
    assert mean.statistics().tolist() == mean.statistics().tolist()
    assert total.count == 1
    assert pending.held_bytes > 0


def test_what_was_added_is_released() -> None:
    total = OrderedSum(LAYOUT)
    for seed in range(2):
        update = update_of(model_of(seed))
        total.add(update)
        assert update.held_bytes == 0


def test_a_mean_is_an_array_of_its_own() -> None:
    total = OrderedSum(LAYOUT)
    total.add(update_of(model_of(0)))
    mean = total.closing()
    mean.mean(0, 23)[...] = 7
    mean.statistics()[...] = 7
    assert np.array_equal(mean.mean(0, 23), model_of(0).parameters)
    assert np.array_equal(mean.statistics(), model_of(0).statistics)


def test_a_mean_of_nothing_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        OrderedSum(LAYOUT).closing()


def test_a_sum_that_overflows_is_infinite_without_a_warning() -> None:
    model = model_of(0)
    model.parameters[3] = np.finfo(np.float32).max
    model.statistics[1] = np.finfo(np.float64).max
    total = OrderedSum(LAYOUT)
    total.add(update_of(model))
    total.add(update_of(model))
    mean = total.closing([update_of(model)])
    assert mean.mean(0, 23)[3] == np.inf
    assert mean.statistics()[1] == np.inf


def test_several_threads_read_one_mean_of_several_chunks() -> None:
    layout = layout_of({"w": np.zeros(1_200_000)}, {})
    total = OrderedSum(layout)
    models = [ModelBuffer(layout) for _ in range(3)]
    for seed, model in enumerate(models):
        model.parameters[...] = np.random.default_rng(seed).standard_normal(1_200_000)
    updates = [update_of(model, Float32(layout)) for model in models]
    total.add(updates[0])
    mean = total.closing(updates[1:])
    step = 65_536
    with ThreadPoolExecutor(4) as threads:
        parts = threads.map(
            lambda at: mean.mean(at, min(at + step, 1_200_000)),
            range(0, 1_200_000, step),
        )
        assert np.array_equal(np.concatenate([*parts]), plain_mean(models)[0])


def test_the_representations_show_no_values() -> None:
    total = OrderedSum(LAYOUT)
    total.add(update_of(model_of(0)))
    for thing in (total, total.closing()):
        assert "array" not in repr(thing)
