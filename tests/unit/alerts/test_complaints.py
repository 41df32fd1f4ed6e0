"""What users of other alerting systems complain about, and what therefore does not happen here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock
from tests.ear import Ear
from tests.models import MemoryModule, loader, trainer

NOW = {name: {"delay": 0} for name in ("warning", "error", "critical")}
RULE = {
    "metric": "storage_efficiency",
    "select": {"layer": "*"},
    "condition": "<",
    "thresholds": {"warning": {"fire": 0.5, "recover": 0.7}},
}


class Story:
    """A monitor whose windows are one step and 20 s long; a layer's share of stored states."""

    def __init__(self, layers: int = 1, rules: Any = None, **alerts: Any) -> None:
        self.clock = ManualClock(1000.0)
        self.model = nn.Module()
        self.probes = [CMRProbe(layer) for layer in range(layers)]
        self.model.probes = self.probes  # type: ignore[assignment]
        settings = {"escalation_rules": NOW, "alert_cooldown": 0, "route": {"group_interval": 0}}
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "on_monitor_error": "raise"},
            alert_config={"rules": rules or {"refused": RULE}, **settings, **alerts},
            model=self.model,
            clock=self.clock,
        )
        self.ear = self.monitor.alerts.delivery = Ear()  # type: ignore[assignment]

    def windows(self, *shares: float | None) -> list[str]:
        """So many windows, of all layers alike; None: no sample. What was told."""
        before = len(self.ear.heard)
        for share in shares:
            for probe in self.probes:
                if share is not None:
                    probe.capture(attempted=100, captured=100, stored=round(100 * share))
            self.monitor.step()
            self.clock.advance(20.0)
        return [
            text.split(" at step")[0].removeprefix("[cmr-monitor] ")
            for text in self.ear.heard[before:]
        ]

    @property
    def firing(self) -> list[str]:
        return [state.rule for state in self.monitor.health.firing]


def test_flapping_at_the_threshold() -> None:
    story = Story()
    told = story.windows(0.49, 0.51, 0.49, 0.6, 0.45, 0.69, 0.5)
    assert told == ["WARNING refused"]
    assert story.windows(0.7, 0.51, 0.69) == ["RESOLVED refused"]


def test_a_data_gap_read_as_resolved_then_fired_again() -> None:
    story = Story()
    assert story.windows(0.4, *[None] * 50, 0.4, None) == ["WARNING refused"]
    assert story.firing == ["refused"]
    assert story.windows(0.9) == ["RESOLVED refused"]


def test_a_no_data_alert_that_ignores_for() -> None:
    rule = RULE | {"no_data": {"mode": "alert", "for": "100s"}}
    story = Story(rules={"refused": rule})
    assert story.windows(0.9, None, None, None, None, None) == []
    assert story.windows(None) == ["WARNING refused"]
    assert story.monitor.health.firing[0].phase.value == "nodata"
    assert story.windows(0.9) == ["RESOLVED refused"]


def test_a_resolved_notice_lost_to_a_silence() -> None:
    story = Story()
    assert story.windows(0.4) == ["WARNING refused"]
    story.monitor.silence({"match": {"alert": "refused"}})
    assert story.windows(0.4, 0.9) == ["RESOLVED refused"]
    assert story.windows(0.4, 0.9) == [], "silenced all along"


def test_a_resolved_notice_lost_to_an_inhibition() -> None:
    critical = {"metric": "capture_efficiency", "condition": "<", "thresholds": {"critical": 0.5}}
    story = Story(
        rules={"refused": RULE, "dead": critical},
        inhibit=[{"source": {"alert": "dead"}, "target": {"alert": "refused"}}],
    )
    assert story.windows(0.4) == ["WARNING refused"]
    story.probes[0].capture(attempted=1000, captured=0, stored=0)
    assert story.windows(0.4) == ["CRITICAL dead"]
    story.probes[0].capture(attempted=1000, captured=0, stored=0)
    assert story.windows(0.9) == ["RESOLVED refused"]


def test_low_severities_left_open_after_escalation() -> None:
    then = [{"after": "40s", "raise_to": "error"}]
    story = Story(escalation_rules=NOW | {"warning": {"delay": 0, "then": then}})
    assert story.windows(0.4, 0.4, 0.4) == ["WARNING refused", "ERROR refused"]
    assert [state.severity for state in story.monitor.health.firing] == ["error"]
    assert story.windows(0.9, 0.9, 0.9) == ["RESOLVED refused"]
    assert story.firing == []


def test_one_alert_per_layer_or_rank() -> None:
    """Of a hundred layers there is one notice; ranks: tests/distributed/test_alerts_ranks.py."""
    story = Story(layers=100)
    assert story.windows(0.4) == ["WARNING refused"]
    assert len(story.ear.notices[0].alerts) == 100
    assert len(str(story.ear.notices[0])) < 1000
    assert story.windows(0.9) == ["RESOLVED refused"]


def test_a_limit_that_silences_everything() -> None:
    rules = {
        f"rule_{i:02d}": RULE | {"thresholds": {"warning": {"fire": 0.5 - i / 1000}}}
        for i in range(30)
    }
    most = {"n": 5, "window": "1000s", "overflow": "summary"}
    story = Story(rules=rules, route={"max_per_window": most, "group_interval": 0})
    told = story.windows(0.1)
    assert len(told) == 5
    last = story.ear.notices[-1]
    assert len(last.alerts) == 26
    assert "26 alerts in one notice" in str(last)
    assert sum(len(notice.alerts) for notice in story.ear.notices) == 30
    assert story.windows(0.9) == [], "held back, not lost"
    story.clock.advance(1000)
    assert len(story.windows(0.9)) == 1
    assert all(alert.resolved for alert in story.ear.notices[-1].alerts)
    assert len(story.ear.notices[-1].alerts) == 30


def test_a_missing_metric_that_ends_an_overnight_run(tmp_path: Path) -> None:
    """Nothing in the model gives these numbers; nothing fires, and the run goes on."""
    rules = {
        f"{metric}_{condition}": {
            "metric": metric,
            "select": {"layer": layer},
            "condition": condition,
            "thresholds": {"error": limit},
        }
        for metric, layer in (("retrieval_quality", "*"), ("retrieval_hit_rate", None))
        for condition, limit in ((">", -1.0), ("!=", 0.0), ("outside", [2, 3]), ("frozen", None))
    }
    callback = CMRMonitorCallback(
        monitoring={"on_monitor_error": "raise", "log_every_n_steps": 2}, alerts={"rules": rules}
    )
    fitter = trainer(tmp_path, [callback], max_steps=10)
    fitter.fit(MemoryModule(), loader(10))
    assert fitter.global_step == 10
    assert list(callback.monitor.alerts.transitions) == []


class Spoils(pl.Callback):
    """Makes a weight NaN at a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 6:
            with torch.no_grad():
                next(iter(pl_module.parameters())).fill_(math.nan)


def test_nan_that_poisons_comparisons_and_checkpoints(tmp_path: Path) -> None:
    """NaN meets no comparison; it is an alert of its own, of the series that it was in alone."""
    quality = {"metric": "reconstruction_quality", "select": {"layer": "*"}}
    rules = {
        name: quality | {"condition": condition, "thresholds": {"error": limit}}
        for name, condition, limit in (("under", "<", 0.1), ("over", ">", 0.9), ("not", "!=", 0.5))
    }
    rules["nonfinite"] = {
        "metric": "*",
        "select": {"layer": "*"},
        "condition": "nonfinite",
        "thresholds": {"critical": {}},
        "actions": ["checkpoint"],
    }
    story = Story(layers=2, rules=rules)
    decisions: list[str] = []
    story.monitor.on_decision = lambda kind, why: decisions.append(kind)
    story.probes[0].reconstruction(3, quality=0.5)
    story.probes[1].reconstruction(3, quality=0.5)
    assert story.windows(None) == []
    story.probes[0].reconstruction(3, quality=math.nan)
    story.probes[1].reconstruction(3, quality=0.5)
    assert story.windows(None) == ["CRITICAL nonfinite"]
    labels = {(s.metric, s.layer) for s in story.monitor.health.firing}
    assert labels == {("reconstruction_quality", 0)}
    assert decisions == ["checkpoint"]
    story.probes[0].reconstruction(3, quality=0.5)
    assert story.windows(None) == ["RESOLVED nonfinite"]
    # a checkpoint of weights that are not finite: tests/integration/test_actions.py
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 2})
    saves = pl.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=9)
    fitter = trainer(tmp_path, [Spoils(), callback, saves], max_steps=10, enable_checkpointing=True)
    fitter.fit(MemoryModule(), loader(10))
    [path] = (tmp_path / "saved").glob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["CMRMonitorCallback"]
    again = CMRPerformanceMonitor()
    again.load_state_dict(state)
    assert again.current_step == 8


def test_a_restart_needed_to_change_a_threshold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rules.yaml"

    def write(limit: Any) -> None:
        rule = RULE | {"thresholds": {"warning": limit}}
        path.write_text(yaml.safe_dump({"rules": {"edited": rule}}))

    write(0.2)
    story = Story(rules={"other": RULE | {"metric": "retrieval_quality"}}, rules_file=str(path))
    assert story.windows(0.4, 0.4) == []
    write(0.5)
    assert story.windows(0.4) == ["WARNING edited"]
    write("much")
    assert story.windows(0.4) == []
    assert "thresholds.warning" in caplog.text, "and it says why the rules stay as they were"
    assert story.firing == ["edited"]
    path.write_text("rules: {edited: ")  # half written
    assert story.windows(0.4) == []
    path.unlink()
    assert story.windows(0.4) == [], "an editor takes a file away for a moment"
    assert story.firing == ["edited"]
    write(0.3)
    assert story.windows(0.4) == ["RESOLVED edited"]
    path.write_text("rules: {}")
    assert story.windows(0.1) == []
    assert [rule.name for rule in story.monitor.alerts.rules] == ["other"]
