"""Trends, against the definitions of the papers written out pair by pair."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr_monitor_callbacks.catalogue import Polarity
from cmr_monitor_callbacks.reports.trends import _score, trend_of

Values = list[float]


def median(values: Values) -> float:
    """The middle one, or the mean of the two."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def theil_sen(values: Values, at: Values) -> float:
    """Sen (1968): the median of the slopes of all pairs."""
    pairs = itertools.combinations(range(len(values)), 2)
    return median([(values[j] - values[i]) / (at[j] - at[i]) for i, j in pairs])


def mann_kendall(values: Values) -> float:
    """Kendall (1975): S in standard deviations, corrected for ties and for continuity."""
    n = len(values)
    s = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    ties = sum(t * (t - 1) * (2 * t + 5) for t in Counter(values).values())
    variance = (n * (n - 1) * (2 * n + 5) - ties) / 18
    if s == 0 or variance == 0:
        return 0.0
    return (s - math.copysign(1, s)) / math.sqrt(variance)


def expected(values: Values, polarity: Polarity, at: Values | None = None) -> tuple[str, float]:
    places = [float(i) for i in range(len(values))] if at is None else at
    known = [(v, p) for v, p in zip(values, places, strict=True) if math.isfinite(v)]
    if len(known) < 8:
        return "unknown", math.nan
    numbers, where = [v for v, _ in known], [p for _, p in known]
    sizes = [abs(v) for v in numbers]
    typical = median(sizes) or sum(sizes) / len(sizes)
    if typical == 0:
        return "steady", 0.0
    slope = theil_sen(numbers, where)
    change = slope * (where[-1] - where[0]) / typical
    if abs(mann_kendall(numbers)) < 2.58 or abs(change) < 0.05:
        return "steady", change
    if polarity is Polarity.NEITHER:
        return ("rising" if slope > 0 else "falling"), change
    return ("improving" if (slope > 0) == (polarity is Polarity.HIGHER) else "worsening"), change


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=30))
def test_the_score_is_that_of_the_pairs(values: Values) -> None:
    s = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    assert _score(np.array(values), s) == pytest.approx(mann_kendall(values), abs=1e-12)


# small whole numbers give ties; their quotients lie on no limit by rounding
NUMBERS = st.lists(
    st.one_of(st.integers(-5, 5).map(float), st.just(math.nan)), min_size=0, max_size=40
)


@settings(max_examples=300, deadline=None)
@given(values=NUMBERS, polarity=st.sampled_from(Polarity), data=st.data())
def test_any_series_is_judged_as_the_papers_say(
    values: Values, polarity: Polarity, data: st.DataObject
) -> None:
    apart = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    at = np.cumsum(np.array(apart, dtype=float)).tolist()
    for places in (None, at):
        word, change = expected(values, polarity, places)
        found = trend_of(
            np.array(values, dtype=float), polarity, None if places is None else np.array(places)
        )
        assert found.change == pytest.approx(change, nan_ok=True)
        if not math.isclose(abs(change), 0.05, rel_tol=1e-9):
            assert found.word == word


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=30),
    polarity=st.sampled_from(Polarity),
)
def test_no_number_breaks_it(values: Values, polarity: Polarity) -> None:
    found = trend_of(np.array(values, dtype=float), polarity)
    assert found.word in {"improving", "worsening", "rising", "falling", "steady", "unknown"}
    if found.word not in ("steady", "unknown"):
        assert math.isfinite(found.change)  # JSON has no sign for what is not


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-50, 50).map(float), min_size=8, max_size=30))
def test_what_does_not_matter_and_what_turns_it_round(values: Values) -> None:
    one = np.array(values)
    found = trend_of(one, Polarity.HIGHER)
    assert trend_of(one * 1024, Polarity.HIGHER) == found, "the unit does not matter"
    turned = {"improving": "worsening", "worsening": "improving"}.get(found.word, found.word)
    assert trend_of(one, Polarity.LOWER).word == turned
    assert trend_of(-one, Polarity.HIGHER).word == turned
    assert trend_of(one[::-1], Polarity.HIGHER).word == turned


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e300, 5e-324])
def test_a_constant_is_steady(value: float) -> None:
    found = trend_of(np.full(20, value), Polarity.HIGHER)
    assert (found.word, found.change) == ("steady", 0.0)


def test_seven_points_are_too_few_and_eight_are_not() -> None:
    assert trend_of(np.arange(7.0), Polarity.HIGHER).word == "unknown"
    assert trend_of(np.arange(8.0), Polarity.HIGHER).word == "improving"
    assert trend_of(np.append(np.arange(7.0), np.nan), Polarity.HIGHER).word == "unknown"


def test_an_error_rate_that_was_none_for_most_of_the_run_got_worse() -> None:
    values = np.concatenate((np.zeros(55), np.linspace(0.1, 0.5, 45)))
    found = trend_of(values, Polarity.LOWER)
    assert found.word == "worsening" and found.change > 0.5


def test_outliers_make_no_trend_and_hide_none() -> None:
    flat = np.ones(40) + 0.001 * np.random.default_rng(0).standard_normal(40)
    flat[-1] = 1e6
    assert trend_of(flat, Polarity.HIGHER).word == "steady"
    rising = np.linspace(1, 2, 40)
    rising[30] = -1e6
    assert trend_of(rising, Polarity.HIGHER).word == "improving"


def test_one_series_in_a_hundred_without_a_trend_passes_for_one() -> None:
    rng = np.random.default_rng(1)
    words = [trend_of(rng.random(40), Polarity.NEITHER).word for _ in range(2000)]
    assert 0.002 < np.mean([word != "steady" for word in words]) < 0.018


def test_a_long_series_is_judged_from_200_points_of_it() -> None:
    values = np.linspace(1, 2, 10_001)
    assert trend_of(values, Polarity.HIGHER).change == pytest.approx(1 / 1.5, rel=0.01)


def test_points_that_lie_far_apart_count_by_where_they_lie() -> None:
    at = np.concatenate((np.arange(0, 1000, 100), 1000 + np.arange(30)))
    found = trend_of(1.0 + at / 1000, Polarity.HIGHER, at)
    assert found.change == pytest.approx(1.029 / np.median(1.0 + at / 1000))
