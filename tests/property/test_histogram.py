"""Quantiles of the fixed histograms against exact ones and against DDSketch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ddsketch import DDSketch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmr_monitor_callbacks.histogram import BUCKETS, buckets_of, quantiles

QS = (0.0, 0.25, 0.5, 0.95, 0.99, 1.0)
LOWEST, HIGHEST = 1e-6, 780.0
Floats = NDArray[np.float64]

lasting = st.floats(math.log(LOWEST), math.log(HIGHEST)).map(math.exp)
any_seconds = st.one_of(
    lasting,
    st.just(0.0),
    st.floats(0.0, LOWEST),
    st.floats(HIGHEST, 1e12),
    st.sampled_from([1e-6, 1e-3, 1.0]),
)
samples = st.lists(any_seconds, min_size=1, max_size=200)


def counts_of(seconds: list[float]) -> NDArray[np.int64]:
    keys = buckets_of(np.array(seconds, dtype=np.float64))
    return np.bincount(keys, minlength=BUCKETS)


def answer(seconds: list[float], counts: NDArray[np.int64] | None = None) -> list[float]:
    held = counts_of(seconds) if counts is None else counts
    extremes = np.array([[min(seconds), max(seconds)]])
    got: Floats = quantiles(held[None], np.array(QS), extremes)
    assert got.shape == (1, len(QS))
    return got[0].tolist()


def exact(seconds: list[float]) -> list[float]:
    """The lower empirical quantile: sorted, at int(q * (n - 1))."""
    ordered = sorted(seconds)
    return [ordered[int(q * (len(ordered) - 1))] for q in QS]


@settings(max_examples=200, deadline=None)
@given(st.lists(lasting, min_size=1, max_size=200))
def test_within_two_percent_of_the_exact_quantile(seconds: list[float]) -> None:
    for got, true in zip(answer(seconds), exact(seconds), strict=True):
        assert abs(got - true) <= 0.02 * true * (1 + 1e-9)


@settings(max_examples=200, deadline=None)
@given(samples)
def test_beyond_the_range_the_extremes_are_exact(seconds: list[float]) -> None:
    got = dict(zip(QS, answer(seconds), strict=True))
    true = dict(zip(QS, exact(seconds), strict=True))
    for q in QS:
        if true[q] < LOWEST:
            assert got[q] == min(seconds)  # all that is kept of what is under the range
        elif true[q] > 788.0:
            assert got[q] == max(seconds)
        assert min(seconds) <= got[q] <= max(seconds)
    assert [got[q] for q in QS] == sorted(got.values())


@pytest.mark.parametrize("value", [0.0, 1e-12, 1e-6, 1.0000001e-6, 0.0137, 1.0, 786.0, 1e9])
def test_a_constant_is_answered_exactly(value: float) -> None:
    assert answer([value] * 7) == [value] * len(QS)


@pytest.mark.parametrize("seed", range(4))
def test_against_ddsketch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seconds = np.exp(rng.uniform(math.log(2e-6), math.log(500.0), 3000)).tolist()
    sketch = DDSketch(relative_accuracy=0.02)
    for one in seconds:
        sketch.add(one)
    for q, got in zip(QS, answer(seconds), strict=True):
        oracle = sketch.get_quantile_value(q)
        assert oracle is not None
        # each is within 2 % of the truth, so they are within 4 % and a bit of each other
        assert abs(got - oracle) <= 0.0409 * oracle, q


@settings(max_examples=100, deadline=None)
@given(st.lists(samples, min_size=1, max_size=5))
def test_adding_counts_is_merging(parts: list[list[float]]) -> None:
    together = [one for part in parts for one in part]
    added = np.sum([counts_of(part) for part in parts], axis=0)
    assert added.tolist() == counts_of(together).tolist()
    assert answer(together, added) == answer(together)


@given(any_seconds)
def test_every_duration_has_a_bucket_and_longer_ones_no_lower_one(seconds: float) -> None:
    low, high = buckets_of(np.array([seconds, seconds * 1.05])).tolist()
    assert 0 <= low <= high <= BUCKETS - 1
    if 1.1 * LOWEST < seconds < HIGHEST:
        assert high > low, "5 % apart is never in one bucket"


def test_timers_are_apart_and_one_without_data_is_nan() -> None:
    counts = np.stack([counts_of([0.5]), np.zeros(BUCKETS, dtype=np.int64), counts_of([2.0])])
    extremes = np.array([[0.5, 0.5], [math.inf, -math.inf], [2.0, 2.0]])
    got = quantiles(counts, np.array([0.5, 0.99]), extremes)
    assert got[0].tolist() == [0.5, 0.5]
    assert np.isnan(got[1]).all()
    assert got[2].tolist() == [2.0, 2.0]


def test_by_hand() -> None:
    # 1..21 ms: places int(20 q) = 10, 19, 19
    counts = counts_of([i / 1000 for i in range(1, 22)])
    got = quantiles(counts[None], np.array([0.5, 0.95, 0.99]), np.array([[0.001, 0.021]]))
    assert got[0].tolist() == pytest.approx([0.011, 0.020, 0.020], rel=0.02)
