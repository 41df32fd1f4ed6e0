"""`track_metric` in real runs: shown, kept, judged, resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRPerformanceMonitor,
    ConfigError,
    InMemorySink,
    RunHistory,
)
from cmr_monitor_callbacks.alerts import Alert
from cmr_monitor_callbacks.checking import check
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.explaining import explain
from cmr_monitor_callbacks.rule_tests import run_file
from tests.integration.event_files import series
from tests.models import MemoryModule, loader, trainer

MODEL = "tests.models:MemoryModule"
STRICT = {"on_monitor_error": "raise"}


def loop(clock: ManualClock | None = None, **settings: Any) -> CMRPerformanceMonitor:
    config = {"log_every_n_steps": 2, **STRICT, **settings.pop("config", {})}
    given = {"alert_config": {"rules": {}, "alert_channels": []}, **settings}
    return CMRPerformanceMonitor(config, clock=clock, **given)


def steps(monitor: CMRPerformanceMonitor, *given: list[float]) -> None:
    """A step for each list of values."""
    for values in given:
        with monitor.track_performance():
            for value in values:
                monitor.track_metric("grad_norm", value)


def test_window_run_and_shape() -> None:
    clock = ManualClock(50.0)
    monitor = loop(clock)
    sink = InMemorySink()
    monitor.sinks.append(sink)
    with pytest.raises(KeyError, match="no metric is named 'grad_norm'"):
        monitor.snapshot.value("grad_norm")
    assert math.isnan(monitor.snapshot.value("custom/grad_norm"))
    steps(monitor, [1.0, 2.0], [6.0], [], [], [8.0], [])
    shown = [report.scalars().get("cmr_custom/grad_norm") for report in sink.reports]
    assert shown == [3.0, None, 8.0]
    assert [r.scalars().get("cmr_monitor/invalid_samples") for r in sink.reports] == [0.0] * 3
    snapshot = monitor.snapshot
    assert snapshot.value("grad_norm") == snapshot.value("custom/grad_norm") == 17 / 4
    assert snapshot.value("grad_norm", over="window") == 8.0
    assert math.isnan(snapshot.value("grad_norm", layer=4))
    assert snapshot.custom_run["grad_norm"].samples == 4 and snapshot.unit("grad_norm") == ""
    steps(monitor, [10.0])
    live = monitor.get_live_stats()
    about = {"mean": 27 / 5, "min": 1.0, "max": 10.0, "last": 10.0, "count": 5, "time": 50.0}
    assert live["custom"] == {"grad_norm": about}
    assert monitor.get_live_stats("window")["custom"]["grad_norm"]["count"] == 1
    assert json.loads(json.dumps(live["custom"])) == live["custom"]
    monitor.flush()
    assert monitor.snapshot.value("grad_norm", over="window") == 10.0
    monitor.reset_metrics()
    assert monitor.get_live_stats()["custom"] == {}


def test_what_is_not_taken_is_in_the_error_log() -> None:
    monitor = loop()
    steps(monitor, [math.nan], [1.0, math.inf])
    assert monitor.snapshot.value("invalid_samples") == 2
    assert monitor.snapshot.value("nonfinite_count", over="window") != 2  # of the model's memory
    assert monitor.snapshot.value("grad_norm") == 1.0
    assert list(monitor.error_log) == [
        "step 1: layer None: custom.grad_norm is not finite: nan",
        "step 1: layer None: custom.grad_norm is not finite: inf",
    ]


def test_a_window_of_nothing_but_a_tracked_number_is_flushed() -> None:
    monitor = loop()
    monitor.track_metric("accuracy", 0.5)
    monitor.flush()
    assert (monitor.windows, monitor.snapshot.value("accuracy")) == (1, 0.5)
    monitor.flush()
    assert monitor.windows == 1


def test_other_stages_go_with_the_next_window_and_a_sanity_check_is_thrown_away() -> None:
    monitor = loop()
    monitor.track_metric("a", 1.0)
    monitor.enter_stage("sanity")
    monitor.track_metric("a", 100.0)
    monitor.leave_stage(-1)
    monitor.enter_stage("val")
    monitor.track_metric("a", 3.0)
    monitor.leave_stage(-1)
    assert monitor.snapshots["val"].to_dict()["custom"] == {}
    steps(monitor, [], [])
    assert monitor.snapshot.custom["a"].samples == 2 and monitor.snapshot.value("a") == 2.0


def test_rules_from_code_and_from_settings() -> None:
    heard: list[Alert] = []
    rule = {"metric": "custom/grad_norm", "condition": ">", "thresholds": {"critical": 10}}
    both = "custom/grad_norm > 3 and step_time >= 0"
    rules = {
        "exploding": rule | {"for": "0 steps", "warmup": False},
        "with_when": {
            "metric": "custom/lr",
            "condition": "<",
            "thresholds": {"warning": 1},
            "when": both,
            "for": "0 steps",
            "warmup": False,
        },
    }
    monitor = loop(alert_config={"rules": rules, "alert_channels": []})
    with pytest.raises(ConfigError, match="track_metric is 'custom/grad_norm' until it was"):
        monitor.set_alert("grad_norm", "> 10", heard.append)
    monitor.set_alert("custom/grad_norm", "> 5", heard.append)
    monitor.track_metric("grad_norm", 0.0)
    name = monitor.set_alert("grad_norm", lambda value: value > 10, heard.append)
    assert name == "custom/grad_norm:function"
    monitor.track_metric("lr", 0.1)
    steps(monitor, [0.0], [0.0])
    assert not heard and not monitor.health.firing
    monitor.track_metric("lr", 0.1)
    steps(monitor, [11.0], [13.0])
    assert {state.rule for state in monitor.health.firing} == {
        "exploding",
        "with_when",
        "custom/grad_norm:>",
        "custom/grad_norm:function",
    }
    assert {(alert.rule, alert.resolved, alert.value) for alert in heard} == {
        ("custom/grad_norm:>", False, 12.0),
        (name, False, 12.0),
    }
    assert "custom/grad_norm is 12 (> 10)" in [s.message for s in monitor.health.firing]
    assert monitor.health.component_status()["model"] == "critical"
    steps(monitor, [], [])  # no data: they stay
    assert len(monitor.health.firing) == 4
    monitor.track_metric("lr", 2.0)
    steps(monitor, [0.0], [0.0])
    assert not monitor.health.firing and len(heard) == 4


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "grad_norm"}, "no metric is named 'grad_norm'"),
        ({"metric": "custom/grad norm"}, "no metric is named"),
        ({"metric": "custom/a", "select": {"layer": "*"}}, "custom/a is of the whole"),
        ({"metric": "custom/a", "select": {"rank": "*"}}, "custom/a is of the whole"),
        ({"metric": "custom/a", "condition": "nonfinite", "thresholds": {"error": {}}}, "finite"),
        ({"metric": "score", "when": "customs/a > 3"}, "is no comparison"),
    ],
)
def test_rules_that_are_wrong_are_errors_at_the_start(rule: dict[str, Any], message: str) -> None:
    given = {"condition": ">", "thresholds": {"error": 1}, **rule}
    with pytest.raises(ConfigError, match=message):
        loop(alert_config={"rules": {"mine": given}})


def test_history_and_report(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    monitor = loop(config={"log_every_n_steps": 1}, history={"file": str(path)})
    steps(monitor, [], [1.0], [2.0, 4.0], [], [5.0])
    monitor.track_metric("late", 7)
    steps(monitor, [6.0])
    monitor.close_history("completed")
    with RunHistory(path) as history:
        found = history.series("grad_norm")
        assert found.step.tolist() == [0, 1, 2, 3, 4, 5]
        values = [math.nan, 1.0, 3.0, math.nan, 5.0, 6.0]
        assert found.value.tolist() == pytest.approx(values, nan_ok=True)
        assert history.series("custom/late").value.tolist()[-1] == 7.0
        assert len(history.series("custom/never")) == 0
        with pytest.raises(KeyError, match="no metric is named 'never'"):
            history.series("never")
        assert history.at(5).value("grad_norm") == 6.0
        report = report_of(history)
        told = report["metrics"]["custom/grad_norm"]
        assert told["value"] == pytest.approx(15 / 4) and told["component"] == "custom"


def test_a_long_history_packs_them(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    monitor = loop(config={"log_every_n_steps": 1}, history={"file": str(path)})
    count = 2200  # more than two blocks
    for i in range(count):
        steps(monitor, [float(i)])
        if i == 100:
            monitor.track_metric("other", 1.0)
        if i % 500 == 0:
            monitor.flush_history()
    monitor.close_history("completed")
    with RunHistory(path) as history:
        found = history.series("grad_norm")
        assert found.count.sum() == count and found.last[-1] == count - 1
        assert found.minimum.min() == 0.0


def test_it_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    monitor = loop(history={"file": str(path)})
    steps(monitor, [1.0], [2.0], [], [])
    monitor.close_history("completed")
    assert monitor.snapshot.source("grad_norm") == "track_metric"
    with RunHistory(path) as history:
        for name in ("grad_norm", "custom/grad_norm", "cmr_custom/grad_norm"):
            found = explain(history, name)
            assert found.facts["source"] == "track_metric"
            assert "had data last at step 1" in found.verdict
            assert found.series == {"custom/grad_norm": "1.5 at step 1"}
        with pytest.raises(KeyError, match="is no number and no rule"):
            explain(history, "custom/other")


def test_rules_on_it_can_be_tested_and_checked(tmp_path: Path) -> None:
    rule = {"metric": "custom/grad_norm", "condition": ">", "thresholds": {"error": 10}}
    rules = {"rules": {"big": {**rule, "for": "0 steps", "warmup": False}}}
    (tmp_path / "rules.yaml").write_text(json.dumps(rules))
    test = {
        "input_series": [{"series": "custom/grad_norm", "values": "1 12"}],
        "alert_rule_test": [
            {"eval_time": "0m", "alertname": "big"},
            {
                "eval_time": "1m",
                "alertname": "big",
                "exp_alerts": [{"exp_labels": {"severity": "error"}}],
            },
        ],
    }
    tests = tmp_path / "tests.yaml"
    tests.write_text(json.dumps({"rule_files": ["rules.yaml"], "tests": [test]}))
    outcome = run_file(tests)
    assert (outcome.expectations, outcome.failures) == (2, [])
    settings = tmp_path / "settings.yaml"
    settings.write_text(json.dumps({"alerts": rules}))
    assert "big" not in [note.rule for note in check(str(settings), model=MODEL).rules]


@pytest.mark.parametrize("globs", [["custom/*"], ["custom/grad*"], ["score"]])
def test_which_are_logged(globs: list[str]) -> None:
    monitor = loop(config={"whole_metrics": globs})
    sink = InMemorySink()
    monitor.sinks.append(sink)
    steps(monitor, [1.0], [1.0])
    assert ("cmr_custom/grad_norm" in sink.reports[0].scalars()) == (globs != ["score"])


def test_a_checkpoint_goes_on_as_if_it_had_not_stopped() -> None:
    whole, parts = loop(), loop()
    given: list[list[float]] = [[1.0], [2.0, 7.0], [3.0], [4.0]]
    steps(whole, *given)
    steps(parts, *given[:3])
    state = json.loads(json.dumps(parts.state_dict()["custom"]))
    assert set(state["run"]) == set(state["window"]) == {"grad_norm"}
    saved = parts.state_dict()
    later = loop()
    later.load_state_dict(saved)
    assert later.snapshot.value("grad_norm") == (1 + 2 + 7 + 3) / 4
    steps(later, *given[3:])
    for over in ("run", "window"):
        mine = later.snapshot.to_dict(over)["custom"]["grad_norm"]
        other = whole.snapshot.to_dict(over)["custom"]["grad_norm"]
        del mine["time"], other["time"]
        assert mine == other
    del saved["custom"]  # of a version that had none
    later.load_state_dict(saved)
    assert later.snapshot.to_dict()["custom"] == {}


class Tracks(MemoryModule):
    """Tracks a number in each training step."""

    monitor: CMRPerformanceMonitor

    def training_step(self, batch: Any, index: int) -> Any:
        self.monitor.track_metric("index", index)
        return super().training_step(batch, index)


def test_a_trainer_logs_it_and_has_it_to_watch(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 2, **STRICT})
    model = Tracks()
    model.monitor = callback.monitor
    run = trainer(tmp_path, [callback], max_steps=6)
    run.fit(model, loader(6))
    assert float(run.callback_metrics["cmr_custom/index"]) == 4.5
    assert callback.snapshot.value("index") == 2.5
    assert series(tmp_path)["cmr_custom/index"] == {1: 0.5, 3: 2.5, 5: 4.5}


def test_training_is_the_same_with_it() -> None:
    weights = []
    for tracks in (False, True):
        torch.manual_seed(0)
        model, monitor = nn.Linear(4, 1), loop()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(6):
            with monitor.track_performance():
                loss = model(torch.randn(3, 4)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if tracks:
                    monitor.track_metric("loss", loss)
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights)
    assert monitor.snapshot.custom_run["loss"].samples == 6
