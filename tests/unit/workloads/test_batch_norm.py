from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloister.workloads.batch_norm import batch_norms, moments, serve

FLOAT32 = st.floats(-1e6, 1e6, width=32)
VARIANCE = st.floats(0, 2.0**40, width=32)


@settings(deadline=None)
@given(mean=FLOAT32, variance=VARIANCE)
def test_serving_what_was_served_changes_no_bit(mean: float, variance: float) -> None:
    start = moments(np.array([mean], np.float32), np.array([variance], np.float32))
    served = serve(*start)
    again = serve(*moments(*served))
    assert served[0].tobytes() == again[0].tobytes()
    assert served[1].tobytes() == again[1].tobytes()
    assert served[1][0] >= 0


@settings(deadline=None)
@given(mean=st.floats(-100, 100), second=st.floats(0, 1e5))
def test_aggregated_moments_serve_stably_too(mean: float, second: float) -> None:
    served = serve(np.array([mean]), np.array([second]))
    again = serve(*moments(*served))
    assert served[0].tobytes() == again[0].tobytes()
    assert served[1].tobytes() == again[1].tobytes()


def test_an_ordinary_variance_is_served_as_it_was() -> None:
    mean = np.array([0.5, -3.0, 0.0], np.float32)
    variance = np.array([1.25, 0.001, 7.0], np.float32)
    served = serve(*moments(mean, variance))
    assert np.array_equal(served[0], mean)
    assert np.array_equal(served[1], variance)


def test_pooled_moments_are_those_of_the_union() -> None:
    generator = np.random.default_rng(0)
    parties = [generator.normal(-2, 1, 300), generator.normal(5, 3, 100)]
    travelled = [
        moments(np.array([x.mean()], np.float32), np.array([x.var()], np.float32))
        for x in parties
    ]
    pooled = [
        sum(len(x) * m[k] for x, m in zip(parties, travelled, strict=True)) / 400
        for k in (0, 1)
    ]
    mean, variance = serve(np.asarray(pooled[0]), np.asarray(pooled[1]))
    union = np.concatenate(parties)
    np.testing.assert_allclose(mean, union.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance, union.var(), rtol=1e-6)
    # What a mean of the variances alone would have given is far off.
    assert abs(np.average([x.var() for x in parties], weights=[3, 1]) - variance) > 5


def test_rounding_below_zero_is_served_as_zero() -> None:
    mean, variance = serve(np.array([3.0]), np.array([8.999999]))
    assert (mean.tolist(), variance.tolist()) == ([3.0], [0.0])


def test_only_batch_norms_with_statistics_are_found() -> None:
    shared = nn.BatchNorm1d(2)
    module = nn.Sequential(
        shared, nn.BatchNorm2d(2, track_running_stats=False), nn.LayerNorm(2), shared
    )
    assert batch_norms(module) == {"0": shared}
