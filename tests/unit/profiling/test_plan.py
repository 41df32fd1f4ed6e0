"""In which steps a profile begins."""

from __future__ import annotations

from typing import Any

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, ConfigError
from cmr_monitor_callbacks.config import ProfilingConfig
from cmr_monitor_callbacks.profiling.plan import Planner


def begun(planner: Planner, steps: int, first: int = 0, ends: bool = True) -> list[int]:
    """Steps with which a profile begins, each asked for only where none is under way."""
    found, step = [], first
    while step < first + steps:
        plan = planner.begins(step)
        if plan is None:
            step += 1
            continue
        found.append(step)
        step += plan.warmup + (plan.active or 0)
        if ends:
            planner.ended(step - 1)
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"wait": 2, "warmup": 1, "active": 2, "repeat": 2}, [2, 7]),
        ({"wait": 0, "warmup": 0, "active": 1, "repeat": 3}, [0, 1, 2]),
        ({"wait": 3, "warmup": 0, "active": 1, "repeat": 0}, [3, 7, 11, 15, 19]),
        (None, []),
    ],
)
def test_a_schedule_is_that_of_torch_profiler(schedule: Any, expected: list[int]) -> None:
    config = ProfilingConfig(schedule=schedule, max_profiles=5)
    assert begun(Planner(config), 40) == expected
    # of a fit that goes on at step 100, too
    assert begun(Planner(config), 40, first=100) == [100 + step for step in expected]


def test_an_alert_begins_a_profile_with_the_next_step_and_then_it_is_quiet() -> None:
    trigger = {"rules": {"retrieval_*": 3}, "warmup": 1, "cooldown": 10}
    planner = Planner(ProfilingConfig(schedule=None, trigger=trigger))
    assert begun(planner, 5) == []
    planner.hears(["other"])
    assert planner.begins(5) is None
    planner.hears(["other", "retrieval_slow"])
    plan = planner.begins(6)
    assert plan is not None
    assert (plan.reason, plan.warmup, plan.active) == ("retrieval_slow", 1, 3)
    planner.hears(["retrieval_slow"])  # fired again in it
    planner.ended(9)
    assert begun(planner, 5, first=10) == []
    planner.hears(["retrieval_slow"])
    assert planner.begins(19) is None  # 10 steps: 10 to 19
    planner.hears(["retrieval_slow"])
    assert planner.begins(20) is not None


def test_no_more_profiles_than_allowed() -> None:
    trigger = {"rules": {"x": 1}, "cooldown": 0}
    planner = Planner(ProfilingConfig(schedule=None, trigger=trigger, max_profiles=2))
    for step in range(5):
        planner.hears(["x"])
        assert (planner.begins(step) is not None) == (step < 2)
        planner.ended(step)


@pytest.mark.parametrize(
    ("profiling", "message"),
    [
        ({"schedule": {"active": 0}}, "profiling.schedule.active must be at least 1, got 0"),
        ({"trigger": {"rules": {"retrieval_slow": 0}}}, "must be at least 1, got 0"),
        ({"trigger": {"rules": {"retrieval_slwo": 5}}}, "did you mean 'retrieval_slow'?"),
        ({"ranks": [-1]}, "must be at least 0, got -1"),
        ({"with_stak": True}, "did you mean 'with_stack'?"),
        ({"keep": 0}, "profiling.keep must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(profiling: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        CMRMonitorCallback(profiling=profiling)
    assert message in str(error.value)


def test_profiling_set_in_two_places_is_an_error() -> None:
    on = {"enable_profiling": True}
    assert CMRPerformanceMonitor(on).profiler.enabled
    assert CMRPerformanceMonitor(profiling={"enabled": True}).profiler.enabled
    assert not CMRPerformanceMonitor().profiler.enabled
    for enabled in (True, False):
        with pytest.raises(ConfigError, match="both set; keep one"):
            CMRPerformanceMonitor(on, profiling={"enabled": enabled})
