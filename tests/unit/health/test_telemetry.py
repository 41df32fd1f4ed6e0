"""The detector: beside a reference, how often it is wrong, how soon it is right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmr_monitor_callbacks.health.telemetry import ROWS, Telemetry
from tests.reference_telemetry import OneSeries

Array = NDArray[np.float64]
SHIFT, DRIFT, REGRESSION = range(3)
RATE = 0.02
"""What the manual states: share of series with a false alarm in 1,000 windows."""


def gaussian(random: np.random.Generator, windows: int, series: int) -> Array:
    return random.normal(size=(windows, series))


def heavy_tailed(random: np.random.Generator, windows: int, series: int) -> Array:
    """Student's t of 3 degrees of freedom, of variance 1."""
    return random.standard_t(3, size=(windows, series)) / math.sqrt(3)


def alike(random: np.random.Generator, windows: int, series: int) -> Array:
    """AR(1) with 0.8, of variance 1."""
    out = random.normal(size=(windows, series))
    for now in range(1, windows):
        out[now] = 0.8 * out[now - 1] + 0.6 * out[now]
    return out


def first_alarms(values: Array, bad: float = -1.0, min_windows: int = 30) -> Array:
    """The window of each channel's first score over 1, shape ``(3, series)``; inf: none."""
    series = values.shape[1]
    detector = Telemetry(np.full(series, bad), np.full(series, float(min_windows)))
    first = np.full((3, series), math.inf)
    for window, now in enumerate(values):
        first = np.where(detector.update(now) > 1, np.minimum(first, window), first)
    return first


@pytest.mark.parametrize("noise", [gaussian, heavy_tailed, alike])
@pytest.mark.parametrize("bad", [-1.0, 0.0])
def test_false_alarms_of_what_only_varies(noise: Callable[..., Array], bad: float) -> None:
    values = 10 + noise(np.random.default_rng(7), 1000, 2000)
    alarmed = np.isfinite(first_alarms(values, bad)).any(axis=0)
    assert alarmed.mean() <= RATE


@pytest.mark.parametrize("windows_to_settle", [3, 10, 30, 100, 300, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.0005, 0.002, 0.02, 0.05])
def test_false_alarms_of_a_ratio_that_converges(windows_to_settle: int, noise: float) -> None:
    """From 0.2 to 0.9, as a buffer's or a cache's does at the start; high is good."""
    random = np.random.default_rng(8)
    curve = 0.9 - 0.7 * np.exp(-np.arange(1000) / windows_to_settle)
    values = curve[:, None] + noise * gaussian(random, 1000, 200 if noise else 1)
    assert np.isfinite(first_alarms(values)).any(axis=0).mean() <= RATE


def delays(
    noise: Callable[..., Array], change: Callable[[Array], Array], learned: int = 300
) -> Array:
    """Windows from the beginning of a change to each channel's alarm, shape ``(3, series)``."""
    values = 10 + noise(np.random.default_rng(9), learned + 200, 1000)
    since = np.arange(len(values)) - learned
    values += np.where(since >= 0, change(since), 0.0)[:, None]
    return first_alarms(values) - learned


def within(found: Array, windows: int) -> float:
    """Share of series whose alarm came in so many windows, and not before the change."""
    return float(((found >= 0) & (found < windows)).mean())


@pytest.mark.parametrize("noise", [gaussian, heavy_tailed])
def test_a_shift_of_three_sigma_is_found(noise: Callable[..., Array]) -> None:
    found = delays(noise, lambda since: np.full(len(since), -3.0))
    assert within(found[SHIFT], 10) >= 0.98
    assert within(found[DRIFT], 15) >= 0.98
    assert within(found[REGRESSION], 25) >= 0.98


@pytest.mark.parametrize("noise", [gaussian, heavy_tailed])
@pytest.mark.parametrize(("slope", "windows"), [(0.02, 130), (0.05, 60), (0.1, 40)])
def test_a_slow_drift_is_found(noise: Callable[..., Array], slope: float, windows: int) -> None:
    found = delays(noise, lambda since: -slope * since)
    assert within(found[DRIFT], windows) >= 0.98
    assert within(found[REGRESSION], windows) >= 0.98


def test_where_windows_are_alike_a_change_must_be_larger() -> None:
    """AR(1) with 0.8: what the manual says of it, both ways."""
    small = delays(alike, lambda since: np.full(len(since), -3.0))
    assert within(small.min(axis=0), 100) < 0.5
    large = delays(alike, lambda since: np.full(len(since), -12.0))
    assert within(large.min(axis=0), 60) >= 0.98


def test_what_is_better_is_no_drift_and_no_regression() -> None:
    found = delays(gaussian, lambda since: np.full(len(since), 3.0))
    assert within(found[SHIFT], 10) >= 0.98, "a shift is one either way"
    assert np.isinf(found[DRIFT]).all()
    assert np.isinf(found[REGRESSION]).all()


def test_a_shift_becomes_the_usual_level_and_a_regression_stays() -> None:
    values = 10 + gaussian(np.random.default_rng(3), 900, 200)
    values[300:] -= 3.0
    detector = Telemetry(np.full(200, -1.0), np.full(200, 30.0))
    for now in values:
        scores = detector.update(now)
    assert (scores[SHIFT] < 0.7).all()
    assert (scores[DRIFT] < 1.0).all()
    assert (scores[REGRESSION] > 1.0).mean() > 0.95


def test_two_outliers_are_no_shift() -> None:
    detector = Telemetry(np.array([-1.0]), np.array([30.0]))
    for value in [0.8, 0.82] * 40:
        detector.update(np.array([value]))
    for value in (50.0, -50.0, 0.8, 50.0, 0.81):
        assert detector.update(np.array([value]))[SHIFT, 0] < 1


def test_a_series_that_never_moved() -> None:
    detector = Telemetry(np.array([-1.0]), np.array([10.0]))
    for _ in range(100):
        scores = detector.update(np.array([1.0]))
        assert not scores.any()
    for _ in range(5):
        scores = detector.update(np.array([0.99]))
    assert (scores < 1).all(), "1 % less is not clear yet"
    for _ in range(5):
        scores = detector.update(np.array([0.9]))
    assert scores[SHIFT, 0] > 1


def test_it_says_nothing_before_its_time() -> None:
    detector = Telemetry(np.array([-1.0, -1.0]), np.array([10.0, 50.0]))
    values = [0.8, 0.82] * 6 + [0.1] * 8
    said = [detector.update(np.array([v, v])).max(axis=0) for v in values]
    assert not any(scores[1] for scores in said)
    assert said[-1][0] > 1


def test_no_data_leaves_the_state_untouched() -> None:
    random = np.random.default_rng(5)
    plain, gappy = (Telemetry(np.array([1.0, 0.0]), np.array([10.0, 10.0])) for _ in range(2))
    for value in random.normal(size=60):
        expected = plain.update(np.array([value, value]))
        gappy.update(np.array([math.nan, math.inf]))
        got = gappy.update(np.array([value, value]))
        assert np.array_equal(got, expected)
    assert np.array_equal(gappy.state, plain.state, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_does_what_the_formulas_say(data: Any) -> None:
    """Many series at once, with gaps, against one at a time in plain Python."""
    series = data.draw(st.integers(1, 4))
    bad = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=series, max_size=series))
    least = data.draw(st.lists(st.integers(10, 40), min_size=series, max_size=series))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    level = data.draw(st.sampled_from([0.0, 0.5, 100.0, -3.0]))
    values = level + random.standard_t(3, size=(150, series)) * data.draw(
        st.sampled_from([0.0, 1e-3, 0.1, 5.0])
    )
    values[80:] += data.draw(st.sampled_from([0.0, -1.0, 2.0, 30.0]))
    values[random.random(values.shape) < data.draw(st.sampled_from([0.0, 0.2]))] = math.nan
    detector = Telemetry(np.array(bad, dtype=float), np.array(least, dtype=float))
    references = [OneSeries(*pair) for pair in zip(bad, least, strict=True)]
    for now in values:
        got = detector.update(now)
        expected = np.array([one.update(float(x)) for one, x in zip(references, now, strict=True)])
        np.testing.assert_allclose(got.T, expected, rtol=1e-9, atol=1e-9)


def test_its_memory_does_not_grow() -> None:
    detector = Telemetry(np.zeros(3), np.full(3, 30.0))
    for value in np.random.default_rng(1).normal(size=(500, 3)):
        detector.update(value)
        assert detector.state.shape == (len(ROWS), 3)
