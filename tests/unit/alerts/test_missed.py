"""Windows that no rule is judged in, and gaps: nothing that mattered is forgotten."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.alerts.missed import Missed
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.config import AlertConfig
from cmr_monitor_callbacks.health import AlertEngine, AlertRule, GivenNumbers, compile_rules
from cmr_monitor_callbacks.packed import METRIC_ROW
from tests.ear import Ear
from tests.unit.alerts.test_complaints import Story


class Run:
    """A monitor of windows of one step and 1 s, whose rules are judged each 5 s."""

    def __init__(self, select: dict[str, Any]) -> None:
        self.model, self.clock = nn.Module(), ManualClock()
        self.model.probe = CMRProbe(0)
        rule = {
            "metric": "reconstruction_quality",
            "select": select,
            "condition": "nonfinite",
            "thresholds": {"critical": {}},
            "summary": "{value:.0f}",
        }
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "health_check_interval": 5, "on_monitor_error": "raise"},
            alert_config={"rules": {"nonfinite": rule}},
            model=self.model,
            clock=self.clock,
        )
        self.ear = self.monitor.alerts.delivery = Ear()  # type: ignore[assignment]

    def windows(self, *qualities: float) -> list[str]:
        before = len(self.ear.notices)
        for quality in qualities:
            self.model.probe.reconstruction(3, quality=quality)
            self.monitor.step()
            self.clock.advance(1.0)
        told = self.ear.notices[before:]
        return [f"{one.title} {one.alerts[0].message}" for one in told]


@pytest.mark.parametrize("select", [{}, {"layer": "*"}, {"rank": "*"}])
def test_a_nan_between_two_evaluations_is_told(select: dict[str, Any]) -> None:
    """`health_check_interval` (30 s in the preset quiet) skips windows, but not their NaN."""
    run = Run(select)
    assert run.windows(0.5, 0.5, math.nan, 0.5, math.nan) == []
    where = {"layer": ", layer 0", "rank": ", rank 0"}.get(next(iter(select), ""), "")
    told = run.windows(0.5, 0.5, 0.5, 0.5)
    assert [text.split(" ")[0] for text in told] == ["CRITICAL"] and told[0].endswith(" 2"), where
    assert run.windows(0.5, 0.5)[0].startswith("RESOLVED"), "they are counted once"
    run.monitor.detach()


def test_it_is_told_after_a_resumption_between_the_two() -> None:
    first, second = Run({}), Run({})
    first.windows(0.5, math.nan, 0.5)
    state = first.monitor.state_dict()
    second.clock.advance(first.clock.wall() - second.clock.wall())
    second.monitor.load_state_dict(state)
    told = second.windows(0.5, 0.5, 0.5, 0.5, 0.5)
    assert [text.split(" ")[0] for text in told] == ["CRITICAL"]
    for run in (first, second):
        run.monitor.detach()


def test_every_kind_of_series_is_counted() -> None:
    rules = [
        AlertRule("a", ("avg_latency",), "nonfinite", (), layer="*"),
        AlertRule("b", ("avg_latency",), "nonfinite", (), rank="*"),
        AlertRule("c", ("avg_latency",), "nonfinite", (), layer="*", rank="*"),
    ]
    bad = {("avg_latency", 4, None): 1.0, ("avg_latency", None, 1): 2.0, ("avg_latency", 4, 1): 3.0}
    missed = Missed()
    for _ in range(2):
        missed.note(GivenNumbers({}, ranks=2, nonfinite=bad), rules)
    again = Missed()
    again.load(json.loads(json.dumps(missed.state())))
    numbers = again.added_to(GivenNumbers({}, layers=[2, 4], ranks=2))  # a layer came before it
    row = METRIC_ROW["avg_latency"]
    assert numbers.table("nonfinite", "layer")[row, 2] == 2.0
    assert numbers.table("nonfinite", "rank")[row, 2] == 4.0
    assert numbers.table("nonfinite", "cell")[row, 3 + 2] == 6.0
    for by in ("layer", "rank", "cell"):
        assert math.isnan(numbers.table("nonfinite", by)[row, 0])  # type: ignore[arg-type]
        assert math.isnan(numbers.table("window", by)[row, 2])  # type: ignore[arg-type]


def test_a_rank_and_a_layer_that_are_gone_are_left_out() -> None:
    rules = [AlertRule("b", ("avg_latency",), "nonfinite", (), rank="*")]
    rules.append(AlertRule("a", ("avg_latency",), "nonfinite", (), layer="*"))
    missed = Missed()
    bad = {("avg_latency", 4, None): 1.0, ("avg_latency", None, 3): 2.0}
    missed.note(GivenNumbers({}, ranks=4, nonfinite=bad), rules)
    numbers = missed.added_to(GivenNumbers({}, ranks=2))
    for by in ("layer", "rank"):
        assert not (numbers.table("nonfinite", by) > 0).any()  # type: ignore[arg-type]


def test_since_step_is_where_the_condition_was_first_met() -> None:
    story = Story()
    story.windows(0.4, None, None, None)
    story.windows(0.4)
    [state] = story.monitor.alerts._engine.open()
    assert state.since_step == 0
    assert state.since_time == 1000.0


def test_since_step_survives_a_checkpoint_and_the_clock_of_for_goes_on() -> None:
    rule = {
        "metric": "avg_latency",
        "condition": ">",
        "thresholds": {"error": 1},
        "for": "3 windows",
    }
    engine = AlertEngine(compile_rules(AlertConfig(rules={"slow": rule})))
    for window, value in enumerate([2.0, math.nan, math.nan, 2.0]):
        numbers = GivenNumbers({("avg_latency", None, None): value})
        engine.evaluate(numbers, step=10 * window, now=float(window), window=window)
    state = json.loads(json.dumps(engine.state()))
    after = AlertEngine(engine.rules)
    after.load(state)
    [alert] = after.open()
    assert (alert.phase.value, alert.since_step) == ("pending", 0), "a gap is no time of `for`"
    for item in state["instances"]:
        del item["begun"]
    older = AlertEngine(engine.rules)
    older.load(state)
    [alert] = older.open()
    assert alert.since_step == 20, "of a version that knew the moved clock alone"
