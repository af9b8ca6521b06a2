from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.federation.exact_sum import (
    LARGEST_STATISTIC,
    LARGEST_VALUE,
    MAX_UPDATES,
    ExactSum,
)
from cloister.federation.layout import ModelBuffer, layout_of
from cloister.federation.updates import Receiver, Update
from cloister.federation.wire_format import Bfloat16, Float32

PARAMETERS, STATISTICS = 23, 5
LAYOUT = layout_of({"w": np.zeros(PARAMETERS)}, {"m": np.zeros(STATISTICS)})
Format = Float32 | Bfloat16
FORMATS: tuple[Format, ...] = (
    Float32(LAYOUT, chunk_bytes=16),
    Bfloat16(LAYOUT, chunk_bytes=16),
)


def model_of(seed: int) -> ModelBuffer:
    """Values of all sizes, the largest and the smallest among them."""
    generator = np.random.default_rng(seed)
    model = ModelBuffer(LAYOUT)
    for values, top in ((model.parameters, 10), (model.statistics, 40)):
        exponents = generator.uniform(-160, top, len(values))
        values[...] = np.copysign(
            2.0**exponents, generator.standard_normal(len(values))
        )
        values[generator.integers(len(values))] = generator.choice([-1, 1]) * 2.0**top
        values[generator.integers(len(values))] = generator.choice([-0.0, 2.0**-149])
    return model


def update_of(model: ModelBuffer, wire: Format = FORMATS[0]) -> Update:
    receiver = Receiver(wire, limits=ExactSum.limits)
    for number in range(wire.chunk_count):
        receiver.feed(wire.encode(model, number))
    return receiver.finish()


def mean_bytes(
    models: Sequence[ModelBuffer], *, pending: int = 0, wire: Format = FORMATS[0]
) -> tuple[bytes, bytes]:
    total = ExactSum(LAYOUT, parties=64)
    split = len(models) - pending
    for model in models[:split]:
        total.add(update_of(model, wire))
    mean = total.closing([update_of(model, wire) for model in models[split:]])
    return mean.mean(0, PARAMETERS).tobytes(), mean.statistics().tobytes()


@settings(max_examples=40)
@given(st.data())
def test_any_order_and_any_split_gives_the_same_bits(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 64))
    order = data.draw(st.permutations(range(count)))
    pending = data.draw(st.integers(0, count))
    wire = data.draw(st.sampled_from(FORMATS))
    models = [model_of(seed) for seed in range(count)]
    assert mean_bytes(models, wire=wire) == mean_bytes(
        [models[n] for n in order], pending=pending, wire=wire
    )


@settings(max_examples=40)
@given(st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_the_mean_is_as_near_to_the_true_one_as_the_proof_says(
    count: int, seed: int
) -> None:
    models = [model_of(seed + n) for n in range(count)]
    parameters, statistics = mean_bytes(models)
    check_near(
        np.frombuffer(parameters, np.float32).tolist(),
        [model.parameters.tolist() for model in models],
        grid=Fraction(2) ** -42,
        rounding=Fraction(2) ** -24,
    )
    check_near(
        np.frombuffer(statistics, np.float64).tolist(),
        [model.statistics.tolist() for model in models],
        grid=Fraction(2) ** -64,
        rounding=4 * Fraction(2) ** -53,
    )


def check_near(
    means: list[float],
    values: list[list[float]],
    *,
    grid: Fraction,
    rounding: Fraction,
) -> None:
    for mean, column in zip(means, zip(*values, strict=True), strict=True):
        true = sum(map(Fraction, column), Fraction()) / len(column)
        # A thousandth more: roundings of what was rounded.
        slack = rounding * Fraction(1001, 1000) * (abs(true) + grid)
        assert abs(Fraction(mean) - true) <= grid + slack


@given(st.integers(0, 22), st.integers(1, 23), st.integers(0, 3))
def test_any_stretch_of_the_mean_is_the_same(start: int, size: int, added: int) -> None:
    total = ExactSum(LAYOUT, parties=3)
    for seed in range(added):
        total.add(update_of(model_of(seed)))
    mean = total.closing([update_of(model_of(seed)) for seed in range(added, 3)])
    stop = min(PARAMETERS, start + size)
    whole = mean.mean(0, PARAMETERS)
    assert mean.mean(start, stop).tobytes() == whole[start:stop].tobytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_as_many_of_the_largest_as_there_can_be_add_up(sign: int) -> None:
    # Of one value: thousands of updates.
    layout = layout_of({"w": np.zeros(1)}, {"m": np.zeros(1)})
    wire = Float32(layout)
    model = ModelBuffer(layout)
    model.parameters[...] = sign * LARGEST_VALUE
    model.statistics[...] = sign * LARGEST_STATISTIC
    chunk = wire.encode(model, 0)
    total = ExactSum(layout, parties=MAX_UPDATES)
    for _ in range(MAX_UPDATES):
        receiver = Receiver(wire, limits=total.limits)
        receiver.feed(chunk)
        total.add(receiver.finish())
    assert total.closing().mean(0, 1).tolist() == [sign * LARGEST_VALUE]
    assert total.closing().statistics().tolist() == [sign * LARGEST_STATISTIC]


def test_small_values_are_not_lost_beside_large_ones() -> None:
    values = [1024.0, 2.0**-41, -1024.0]
    models = [ModelBuffer(LAYOUT) for _ in values]
    for model, value in zip(models, values, strict=True):
        model.parameters[...] = value
    parameters = np.frombuffer(mean_bytes(models)[0], np.float32)
    assert (parameters == np.float32(2.0**-41 / 3)).all()


@pytest.mark.parametrize("wire", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_parameter_beyond_the_largest_is_refused(wire: Format, sign: int) -> None:
    model = ModelBuffer(LAYOUT)
    model.parameters[7] = sign * LARGEST_VALUE
    update_of(model, wire)
    model.parameters[7] = sign * LARGEST_VALUE * (1 + 2.0**-7)
    with pytest.raises(ProtocolError) as caught:
        update_of(model, wire)
    assert caught.value.code == "update-too-large"


def test_a_statistic_beyond_the_largest_is_refused() -> None:
    model = ModelBuffer(LAYOUT)
    model.statistics[1] = LARGEST_STATISTIC
    update_of(model)
    model.statistics[1] = np.nextafter(LARGEST_STATISTIC, np.inf)
    with pytest.raises(ProtocolError) as caught:
        update_of(model)
    assert caught.value.code == "update-too-large"


def test_an_update_not_held_to_the_limits_is_not_added() -> None:
    receiver = Receiver(FORMATS[0])
    for number in range(FORMATS[0].chunk_count):
        receiver.feed(FORMATS[0].encode(model_of(0), number))
    update = receiver.finish()
    total = ExactSum(LAYOUT, parties=2)
    with pytest.raises(RuntimeError, match="limits"):
        total.add(update)
    with pytest.raises(RuntimeError, match="limits"):
        total.closing([update])
    assert total.count == 0
    assert update.held_bytes > 0


def test_one_update_too_many_is_not_added() -> None:
    total = ExactSum(LAYOUT, parties=1)
    total.add(update_of(model_of(0)))
    with pytest.raises(RuntimeError, match="parties"):
        total.add(update_of(model_of(1)))
    with pytest.raises(RuntimeError, match="parties"):
        total.closing([update_of(model_of(1))])


def test_more_parties_than_can_be_added_exactly_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_UPDATES)):
        ExactSum(LAYOUT, parties=MAX_UPDATES + 1)


def test_a_mean_of_nothing_is_a_bug() -> None:
    with pytest.raises(RuntimeError):
        ExactSum(LAYOUT, parties=2).closing()


def test_a_sum_is_used_again_and_keeps_nothing_of_the_last_round() -> None:
    total = ExactSum(LAYOUT, parties=2)
    for first in (0, 2):
        models = [model_of(first), model_of(first + 1)]
        for model in models:
            update = update_of(model)
            total.add(update)
            assert update.held_bytes == 0
        mean = total.closing()
        assert (
            mean.mean(0, PARAMETERS).tobytes(),
            mean.statistics().tobytes(),
        ) == mean_bytes(models)
        total.reset()
        assert total.count == 0


def test_reading_a_mean_changes_neither_sum_nor_pending() -> None:
    total = ExactSum(LAYOUT, parties=3)
    total.add(update_of(model_of(0)))
    pending = update_of(model_of(1))
    first, second = total.closing([pending]), total.closing([pending])
    assert first.mean(0, 23).tobytes() == second.mean(0, 23).tobytes()
    assert first.statistics().tobytes() == second.statistics().tobytes()
    assert total.count == 1
    assert total.closing().mean(0, 23).tobytes() == mean_bytes([model_of(0)])[0]


def test_the_representations_show_no_values() -> None:
    total = ExactSum(LAYOUT, parties=2)
    total.add(update_of(model_of(0)))
    for thing in (total, total.closing()):
        assert "array" not in repr(thing)
