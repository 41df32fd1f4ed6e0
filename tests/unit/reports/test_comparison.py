"""Two runs beside each other, against means and ranks that are counted one by one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr_monitor_callbacks import RunHistory
from cmr_monitor_callbacks.reports.comparison import Difference, _rank_score, compare
from tests.histories import snapshot, store


def run_of(*, every: int = 5, **series: Sequence[float]) -> RunHistory:
    """A run whose windows have these numbers."""
    opened = store(None)
    for i in range(max(len(values) for values in series.values())):
        values = {name: float(given[i]) for name, given in series.items() if i < len(given)}
        opened.window(snapshot(every * (i + 1) - 1, values))
    return RunHistory(opened)


def one(base: RunHistory, run: RunHistory, **options: float) -> Difference:
    [found] = compare(base, run, **options)  # type: ignore[arg-type]
    return found


def mann_whitney(old: Sequence[float], new: Sequence[float]) -> float:
    """Mann and Whitney (1947): pairs in which the new is greater; ties count half."""
    u = sum((b > a) + 0.5 * (b == a) for a in old for b in new)
    m, n = len(old), len(new)
    ties = sum(t**3 - t for t in Counter([*old, *new]).values())
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    return 0.0 if variance <= 0 else (u - m * n / 2) / math.sqrt(variance)


SAMPLES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=25)


@settings(max_examples=200, deadline=None)
@given(old=SAMPLES, new=SAMPLES)
def test_the_ranks_are_those_of_the_pairs(old: list[float], new: list[float]) -> None:
    found = _rank_score(np.array(old), np.array(new))
    assert found == pytest.approx(mann_whitney(old, new), abs=1e-9)
    assert _rank_score(np.array(new), np.array(old)) == pytest.approx(-found, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    old=st.lists(st.integers(1, 9).map(float), min_size=1, max_size=30),
    new=st.lists(st.integers(1, 9).map(float), min_size=1, max_size=30),
    tail=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_any_two_runs_are_judged_by_the_rules(
    old: list[float], new: list[float], tail: float
) -> None:
    found = one(run_of(storage_efficiency=old), run_of(storage_efficiency=new), tail=tail)
    was = old[-max(1, math.ceil(tail * len(old))) :]
    now = new[-max(1, math.ceil(tail * len(new))) :]
    before, after = sum(was) / len(was), sum(now) / len(now)
    change = (after - before) / before
    assert (found.base, found.run) == (pytest.approx(before), pytest.approx(after))
    assert found.change == pytest.approx(change, abs=1e-12)
    sure = min(len(was), len(now)) < 5 or abs(mann_whitney(was, now)) > 2.58
    moved = abs(change) > 0.05 and sure
    verdict = "same" if not moved else "improvement" if after > before else "regression"
    assert found.verdict == verdict and found.fails == (verdict == "regression")


@pytest.mark.parametrize(
    ("metric", "worse"),
    [
        ("storage_efficiency", 0.5),  # higher is better
        ("error_rate", 2.0),  # lower is better
        ("step_time", 2.0),
        ("throughput", 0.5),
    ],
)
def test_what_is_worse_depends_on_the_number(metric: str, worse: float) -> None:
    values = 0.1 + 0.001 * np.random.default_rng(2).random(40)
    base = run_of(**{metric: values})
    assert one(base, run_of(**{metric: values * worse})).verdict == "regression"
    assert one(base, run_of(**{metric: values / worse})).verdict == "improvement"
    assert one(base, run_of(**{metric: values})).verdict == "same"


@pytest.mark.parametrize("windows", range(1, 12))
def test_a_run_that_is_thrice_as_slow_is_worse_however_short(windows: int) -> None:
    rng = np.random.default_rng(windows)
    base = run_of(step_time=0.1 + 0.01 * rng.random(windows))
    assert one(base, run_of(step_time=0.3 + 0.01 * rng.random(windows)), tail=1).fails


def test_seconds_and_rates_may_differ_more() -> None:
    values = 1 + 0.001 * np.random.default_rng(2).random(40)
    for metric in ("step_time", "throughput", "tokens_per_second"):
        factor = 1.15 if metric == "step_time" else 1 / 1.15
        base, run = run_of(**{metric: values}), run_of(**{metric: values * factor})
        assert one(base, run).verdict == "same"
        assert one(base, run, time_tolerance=0.1).verdict == "regression"
    base = run_of(error_rate=values)
    assert one(base, run_of(error_rate=values * 1.15)).verdict == "regression"


def test_noise_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    verdicts = [
        one(run_of(error_rate=rng.random(30)), run_of(error_rate=rng.random(30)), tail=1).verdict
        for _ in range(200)
    ]
    assert verdicts.count("same") >= 192  # one in a hundred is not, by chance


def test_identical_runs_are_the_same_whatever_they_hold() -> None:
    values = {"step_time": [0.1, math.nan, math.inf, 0.2], "error_rate": [0, 0, 0, 0]}
    for found in compare(run_of(**values), run_of(**values)):
        assert found.verdict == "same" and not found.fails


def test_a_number_that_the_run_has_not_fails_it() -> None:
    base = run_of(step_time=[1, 1], error_rate=[1, 1])
    found = {d.metric: d for d in compare(base, run_of(step_time=[1, 1]))}
    assert found["error_rate"].verdict == "missing" and found["error_rate"].fails
    assert found["error_rate"].to_dict()["run"] is None
    assert compare(base, run_of(step_time=[1, 1]))[0].verdict == "missing", "the worst first"
    json.dumps([d.to_dict() for d in found.values()], allow_nan=False)


def test_a_base_without_numbers_compares_with_nothing() -> None:
    empty = RunHistory(store(None))
    [found] = compare(empty, run_of(step_time=[1.0]))
    assert (found.verdict, found.run, found.fails) == ("new", 1.0, False)
    assert math.isnan(found.base)
    nan = run_of(step_time=[1.0, math.nan], error_rate=[math.nan, 0.0])
    assert [d.metric for d in compare(nan, nan)] == ["error_rate"]


def test_from_none_every_error_is_worse_and_has_no_share() -> None:
    found = one(run_of(error_rate=[0.0] * 10), run_of(error_rate=[0.1] * 10))
    assert found.verdict == "regression" and math.isnan(found.change)


def test_counters_are_compared_per_step() -> None:
    errors = np.arange(20) * 10.0
    base = run_of(error_count=errors, every=5)
    longer = run_of(error_count=np.arange(40) * 20.0, every=10)
    found = one(base, longer)
    assert (found.unit, found.base, found.run, found.verdict) == ("errors/step", 2.0, 2.0, "same")
    assert one(base, run_of(error_count=errors * 2)).verdict == "regression"


def test_only_the_metrics_that_are_asked_for_and_those_with_a_direction() -> None:
    base = run_of(step_time=[1.0], error_rate=[0.5], utilization_rate=[0.5])
    assert {d.metric for d in compare(base, base)} == {"step_time", "error_rate"}
    assert {d.metric for d in compare(base, base, metrics=["error_*"])} == {"error_rate"}
