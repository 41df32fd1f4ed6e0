"""Rules beside a recorded run: what is read, what it is beside, and what is said of it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.alerts.baseline import read_baseline
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.config import AlertConfig, HistoryConfig, parse
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertEngine, AlertRule, GivenNumbers, compile_rules
from cmr_monitor_callbacks.health.baseline import Baseline, around
from tests.ear import Ear
from tests.histories import end, snapshot, store
from tests.runs import spoil

RULE: dict[str, Any] = {
    "metric": "storage_efficiency",
    "select": {"layer": "*"},
    "compare": {"vs": "baseline"},
    "condition": "<",
    "thresholds": {"error": {"fire": 0.8, "recover": 0.9}},
}
KEY = ("storage_efficiency", 4, None, "window")


def rules_of(**changes: Any) -> tuple[AlertRule, ...]:
    config = parse(AlertConfig, {"rules": {"worse": {**RULE, **changes}}}, "alerts")
    return compile_rules(config)


def record(folder: Path, windows: int = 20, length: int = 10) -> Path:
    """A run whose layer 4 stored more and more, and 8 states a step; layer 6 never had data."""
    kept = store(folder / "history.sqlite")
    for window in range(windows):
        values: dict[Any, float] = {
            ("storage_efficiency", 4): 0.01 * (window + 1),
            ("states_stored", 4): 8.0 * length * (window + 1),
        }
        kept.window(snapshot(length * (window + 1) - 1, values, layers=(4, 6)))
    end(kept)
    return folder


@pytest.mark.parametrize("name", ["", "history.sqlite", ".."])
def test_a_run_is_named_by_its_folder_its_file_or_a_folder_above(tmp_path: Path, name: str) -> None:
    folder = record(tmp_path / "runs" / "one")
    run = read_baseline(str(folder / name), rules_of())
    assert run.name.endswith("history.sqlite")
    assert run.at(KEY, 99) == pytest.approx(0.10)


def test_the_value_is_the_median_around_the_step(tmp_path: Path) -> None:
    run = read_baseline(str(record(tmp_path)), rules_of())
    for step, expected in (
        (-1, 0.01),  # before the first window has ended
        (9, 0.01),
        (28, 0.02),
        (29, 0.03),
        (98, 0.09),
        (99, 0.10),  # 0.08 to 0.12
        (108, 0.10),
        (199, 0.20),
        (200, 0.18),
        (10**9, 0.18),  # beyond its end: its last part
    ):
        assert run.at(KEY, step) == pytest.approx(expected), step


@pytest.mark.parametrize("count", range(9))
def test_the_median_beside_a_loop(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    halves = [min(2, at, count - 1 - at) for at in range(count)]
    pieces = [values[at - half : at + half + 1] for at, half in enumerate(halves)]
    assert around(values).tolist() == [float(np.median(piece)) for piece in pieces]


def test_a_run_beside_itself_is_all_ones_however_steep(tmp_path: Path) -> None:
    kept = store(tmp_path / "history.sqlite")
    values = 1 - np.exp(-np.arange(1, 30) / 5)
    for step, value in enumerate(values):
        kept.window(snapshot(step, {("storage_efficiency", 4): value}, layers=(4,)))
    end(kept)
    engine = AlertEngine(
        rules_of(thresholds={"error": 5}), read_baseline(str(tmp_path), rules_of())
    )
    for step, value in enumerate(values):
        numbers = GivenNumbers({("storage_efficiency", 4, None): value})
        engine.evaluate(numbers, step=step, now=0.0, window=step)
        [alert] = engine.open()
        assert alert.value == pytest.approx(1.0)


def test_a_counter_is_compared_for_windows_of_any_length(tmp_path: Path) -> None:
    """The run added 8 states a step, in windows of 10; these windows are of 25."""
    rules = rules_of(
        metric="states_stored",
        compare={"vs": "baseline", "as": "difference"},
        thresholds={"error": 1e6},
    )
    engine = AlertEngine(rules, read_baseline(str(record(tmp_path)), rules))
    for window, steps in ((1, 25), (2, 25), (3, 7)):
        numbers = GivenNumbers({("states_stored", 4, None): 100.0})
        engine.evaluate(numbers, step=25 * window, now=0.0, window=window, steps=steps)
        [alert] = engine.open()
        assert alert.value == pytest.approx(100 - 8 * steps)
    engine.evaluate(GivenNumbers({("states_stored", 4, None): 900.0}), step=99, now=1, window=4)
    assert engine.open(), "without the window's length it is no data"
    over_run = rules_of(metric="states_stored", over="run")
    engine = AlertEngine(over_run, read_baseline(str(tmp_path), over_run))
    numbers = GivenNumbers({("states_stored", 4, None): 400.0})
    engine.evaluate(numbers, step=99, now=0.0, window=1, steps=25)
    [alert] = engine.open()
    assert alert.value == pytest.approx(0.5), "800 by then"
    assert alert.message.startswith("layer 4: states_stored is 0.5 times baseline")


def test_gaps_of_the_run_are_left_out(tmp_path: Path) -> None:
    kept = store(tmp_path / "history.sqlite")
    for step in range(30):
        value = math.nan if 10 <= step < 20 else 1.0 + step
        kept.window(snapshot(step, {("storage_efficiency", 4): value}, layers=(4,)))
    end(kept)
    run = read_baseline(str(tmp_path), rules_of())
    assert run.at(KEY, 15) == 10.0, "the newest with data is that of step 9: 8, 9, 10, 21, 22"
    engine = AlertEngine(rules_of(), run)
    engine.evaluate(
        GivenNumbers({("storage_efficiency", 4, None): 5.0}), step=15, now=0.0, window=1
    )
    [alert] = engine.open()
    assert alert.value == pytest.approx(0.5), "the table of the engine says the same"


def test_a_long_run_is_read_at_a_bounded_number_of_points(tmp_path: Path) -> None:
    kept = store(tmp_path / "history.sqlite", HistoryConfig(raw_windows=1000))
    for step in range(6000):
        values = {("storage_efficiency", 4): 0.5 + step / 12000, ("states_stored", 4): 8.0 * step}
        kept.window(snapshot(step, values, layers=(4,)))
        kept.tidy(0.0)
    end(kept)
    rules = rules_of() + rules_of(metric="states_stored")
    run = read_baseline(str(tmp_path), rules)
    assert len(run.series[KEY][0]) < 4000
    for step in (500, 3000, 5900):
        assert run.at(KEY, step) == pytest.approx(0.5 + step / 12000, rel=0.01)
        assert run.at(("states_stored", 4, None, "window"), step) == pytest.approx(8.0, rel=0.01)


def test_ranks_and_the_whole() -> None:
    steps, values = np.arange(9), np.full(9, 2.0)
    alone = Baseline({("step_time", None, None, "window"): (steps, values)})
    assert alone.at(("step_time", None, 0, "window"), 5) == 2.0, "one process is rank 0"
    assert math.isnan(alone.at(("step_time", None, 1, "window"), 5))
    many = Baseline(
        {
            ("step_time", None, None, "window"): (steps, values),
            ("step_time", None, 1, "window"): (steps, 2 * values),
        },
        ranks=True,
    )
    assert many.at(("step_time", None, 1, "window"), 5) == 4.0
    assert math.isnan(many.at(("step_time", None, 0, "window"), 5))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "there is no history at"),
        ("empty", "is empty"),
        ("text", "file is not a database|cannot be read|damaged"),
        ("foreign", "is a database, but not a history of this monitor"),
        ("newer", "and this version of cmr-monitor-callbacks knows versions up to"),
        ("truncated", "damaged|cannot be read|malformed"),
        ("damaged", "damaged|cannot be read|malformed"),
    ],
)
def test_a_run_that_cannot_be_read_ends_before_training(
    tmp_path: Path, kind: str, why: str
) -> None:
    path = spoil(tmp_path, kind)
    alerts = {"rules": {"worse": RULE}, "baseline": str(path)}
    with pytest.raises(ConfigError, match=why) as error:
        CMRPerformanceMonitor(alert_config=alerts)
    text = str(error.value)
    assert text.startswith(f"alerts.baseline {str(path)!r}: ")
    assert text.endswith("it must be the log folder of a recorded run, or its history file")


def test_a_run_without_a_window_and_one_that_nobody_names(tmp_path: Path) -> None:
    end(store(tmp_path / "history.sqlite"))
    alerts = {"rules": {"worse": RULE}, "baseline": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"no window of training; it must be the log folder"):
        CMRPerformanceMonitor(alert_config=alerts)
    message = r"alerts\.baseline must name a recorded run.*rules\.worse\.compare\.vs.*got null"
    with pytest.raises(ConfigError, match=message):
        CMRPerformanceMonitor(alert_config={"rules": {"worse": RULE}})
    off = {"rules": {"worse": {**RULE, "enabled": False}}}
    CMRPerformanceMonitor(alert_config=off).detach()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reduce": {"layer": "max"}}, "'baseline' speaks of single series; leave reduce out"),
        ({"over": "run"}, "has storage_efficiency of each window; over must be 'window'"),
        ({"compare": {"vs": "basline"}}, "compare.vs must be.*did you mean 'baseline'"),
        (
            {"condition": "nonfinite", "thresholds": {"error": {}}},
            "compares nothing; leave compare out",
        ),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules_of(**changes)


class Run:
    """A monitor of windows of one step, with a rule beside a run."""

    def __init__(self, recorded: Path | None, **alerts: Any) -> None:
        self.model, self.clock = nn.Module(), ManualClock()
        self.model.probe, self.model.other = CMRProbe(4), CMRProbe(6)
        now = {name: {"delay": 0} for name in ("warning", "error", "critical")}
        path = None if recorded is None else str(recorded)
        settings = {"rules": {"worse": RULE}, "baseline": path, "escalation_rules": now}
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 10, "on_monitor_error": "raise"},
            alert_config={**settings, **alerts},
            model=self.model,
            clock=self.clock,
        )
        self.ear = self.monitor.alerts.delivery = Ear()  # type: ignore[assignment]

    def windows(self, count: int, share: float) -> None:
        for _ in range(10 * count):
            for probe in (self.model.probe, self.model.other):
                probe.capture(attempted=100, captured=100, stored=round(100 * share))
            self.monitor.step()
            self.clock.advance(1.0)


def test_a_series_that_the_run_never_had_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(record(tmp_path))
    with caplog.at_level(logging.WARNING):
        run.windows(3, 0.5)
    said = [r.getMessage() for r in caplog.records if "baseline" in r.getMessage()]
    assert said == [
        f"no data for rules with vs: baseline: {tmp_path} has no storage_efficiency of layer 6"
    ]
    assert not run.monitor.health.firing
    run.monitor.detach()


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    first, second = Run(record(tmp_path, 60)), Run(tmp_path)
    first.windows(30, 0.2)
    assert [alert.rule for alert in first.monitor.health.firing] == ["worse"]
    fired = first.monitor.health.firing[0].fired_step
    second.clock.advance(first.clock.wall() - second.clock.wall())
    second.monitor.load_state_dict(first.monitor.state_dict())
    second.windows(1, 0.2)
    assert [alert.fired_step for alert in second.monitor.health.firing] == [fired]
    second.windows(1, 0.9)
    assert not second.monitor.health.firing
    for run in (first, second):
        run.monitor.detach()


def test_an_edited_rules_file_may_ask_for_more_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: {}\n")
    run = Run(record(tmp_path / "run", 60), rules={}, rules_file=str(rules))
    run.windows(10, 0.2)
    assert not run.monitor.health.firing
    stored = {**RULE, "metric": "states_stored"}
    rules.write_text(yaml.safe_dump({"rules": {"worse": RULE, "fewer": stored}}))
    run.windows(20, 0.02)
    assert {alert.rule for alert in run.monitor.health.firing} == {"worse", "fewer"}
    run.monitor.detach()


def test_an_edited_rules_file_without_a_run_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: {}\n")
    run = Run(None, rules={}, rules_file=str(rules))
    run.windows(1, 0.2)
    rules.write_text(yaml.safe_dump({"rules": {"worse": RULE}}))
    with caplog.at_level(logging.WARNING):
        run.windows(2, 0.2)
    assert "the rules stay as they were: alerts.baseline must name a recorded run" in caplog.text
    assert not run.monitor.alerts.rules
    run.monitor.detach()
