"""Alerts that must not be lost between firing and the channel: clocks, inhibition, severities."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from torch import nn

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRPerformanceMonitor,
    CMRProbe,
    ConfigError,
    Notice,
)
from cmr_monitor_callbacks.alerts import Alert, AlertManager
from cmr_monitor_callbacks.alerts.overflow import Overflow
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.config.alerts import OverflowConfig
from cmr_monitor_callbacks.health import AlertState, Phase, Severity
from tests.ear import Ear
from tests.models import MemoryModule, loader, trainer
from tests.unit.alerts.test_complaints import RULE, Story

TWO = RULE | {"thresholds": {"warning": 0.5, "critical": 0.1}}


def manager(**alerts: Any) -> AlertManager:
    settings = {"rules": {}, "escalation_rules": {}, "inhibit": [], **alerts}
    return AlertManager(parse(AlertConfig, settings, "alerts"))


def firing(rule: str, severity: str, layer: int = 4) -> AlertState:
    return AlertState(
        rule,
        "avg_latency",
        layer,
        component="timing",
        phase=Phase.FIRING,
        severity=Severity(severity),
        message="it is slow",
        fired_time=0.0,
    )


def test_two_that_inhibit_each_other_are_both_told() -> None:
    """As in Alertmanager: what is source and target of a rule is not inhibited by another such."""
    one = manager(inhibit=[{"source": {"severity": "critical"}, "target": {"alert": "*"}}])
    states = [firing("a", "critical"), firing("b", "critical"), firing("c", "warning")]
    told = one.update(states, [], {}, step=1, now=0.0)
    assert sorted(alert.rule for notice in told for alert in notice.alerts) == ["a", "b"]


def test_groups_by_severity() -> None:
    one = manager(route={"group_by": ["severity"]})
    states = [firing("a", "critical"), firing("b", "warning"), firing("c", "warning")]
    told = one.update(states, [], {}, step=1, now=0.0)
    assert [(notice.group["severity"], notice.title) for notice in told] == [
        ("critical", "CRITICAL a"),
        ("warning", "WARNING b, c"),
    ]


def test_a_run_ends_well_after_more_critical_notices_than_fit() -> None:
    overflow = Overflow(OverflowConfig(n=1))
    alert = Alert("a", {}, Severity.CRITICAL, False, "bad", 1.0, 0.5, 1, 0.0)
    many = [Notice((alert,), Severity.CRITICAL, False, 1, 0.0)] * 3
    assert overflow.bounded(many, step=1, now=0.0) == many
    assert overflow.bounded([], step=2, now=1.0, last=True) == []


@pytest.mark.parametrize("resumed", [False, True])
def test_a_clock_that_is_set_back_stops_nothing(resumed: bool) -> None:
    """NTP, or a resumed run on another machine."""
    settings: dict[str, Any] = {
        "rules": {"now": RULE, "held": RULE | {"for": "40s"}},
        "alert_cooldown": 40.0,
        "route": {"group_interval": 0, "max_per_window": {"n": 2, "window": 30}},
    }
    story = Story(**settings)
    assert story.windows(0.9, 0.4) == ["WARNING now"]
    assert story.windows(0.9) == ["RESOLVED now"]
    if resumed:
        state = json.loads(json.dumps(story.monitor.state_dict()))
        story = Story(**settings)
        story.monitor.load_state_dict(state)
    story.clock.now -= 36000.0
    assert story.windows(0.4, 0.4, 0.4, 0.4) == ["WARNING now", "WARNING held"]


def test_a_delay_goes_on_when_the_clock_is_set_back() -> None:
    story = Story(escalation_rules={"warning": {"delay": 40}})
    assert story.windows(0.4, 0.4) == []
    story.clock.now -= 36000.0
    assert story.windows(0.4, 0.4) == ["WARNING refused"]


def silenced(monitor: CMRPerformanceMonitor) -> None:
    monitor.silence({"match": {"alert": "*"}, "comment": "known"})


def test_a_silence_that_is_made_before_the_fit_holds_in_it(tmp_path: Any) -> None:
    rules = {"slow": {"metric": "step_time", "thresholds": {"critical": 0.0}}}
    callback = CMRMonitorCallback(monitoring={"log_every_n_steps": 1}, alerts={"rules": rules})
    ear = callback.monitor.alerts.delivery = Ear()  # type: ignore[assignment]
    silenced(callback.monitor)
    trainer(tmp_path, [callback], max_steps=3).fit(MemoryModule(), loader(3))
    assert [state.rule for state in callback.health.firing] == ["slow"]
    assert ear.heard == []


@pytest.mark.parametrize("when", ["before the checkpoint", "before the resume", "both"])
def test_a_silence_from_code_outlasts_a_resume(when: str) -> None:
    story, again = Story(), Story()
    if when != "before the resume":
        silenced(story.monitor)
    if when != "before the checkpoint":
        silenced(again.monitor)
    again.monitor.load_state_dict(json.loads(json.dumps(story.monitor.state_dict())))
    assert again.windows(0.4) == []
    assert again.firing == ["refused"]
    assert len(again.monitor.state_dict()["alerts"]["manager"]["silences"]) == 1


def test_who_heard_of_the_worst_hears_that_it_ended() -> None:
    """It was told again, as a milder one, before it ended."""
    story = Story(rules={"it": TWO}, route={"repeat_interval": 40, "group_interval": 0}, inhibit=[])
    assert story.windows(0.0, 0.4, 0.4) == ["CRITICAL it", "WARNING it"]
    story.windows(0.9)
    assert [n.severity.value for n in story.ear.notices] == ["critical", "warning", "critical"]
    assert story.ear.notices[-1].resolved


def test_a_channel_is_told_only_of_alerts_that_are_severe_enough() -> None:
    """Of a group it would hear of mild ones too, but not that they ended."""
    heard: list[Notice] = []
    model, clock = nn.Module(), ManualClock()
    probes = [CMRProbe(0), CMRProbe(1)]
    model.probes = probes  # type: ignore[assignment]
    page = {"type": "callback", "function": heard.append, "min_severity": "critical"}
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1},
        alert_config={
            "rules": {"it": TWO},
            "escalation_rules": {},
            "alert_channels": ["page"],
            "channels": {"page": page},
        },
        model=model,
        clock=clock,
    )
    for stored in ((0, 40), (0, 90), (90, 90)):
        for probe, count in zip(probes, stored, strict=True):
            probe.capture(attempted=100, captured=100, stored=count)
        monitor.step()
        clock.advance(1.0)
    assert monitor.alerts.delivery.flush()
    told = [(n.title, [a.labels["layer"] for a in n.alerts]) for n in heard]
    assert told == [("CRITICAL it", ["0"]), ("RESOLVED it", ["0"])]


def test_what_is_told_is_of_the_step_that_it_names() -> None:
    """A delay passes; the value is not the one of its beginning."""
    story = Story(escalation_rules={"warning": {"delay": 40}})
    assert story.windows(0.2, 0.3, 0.4) == ["WARNING refused"]
    assert story.ear.heard[0].endswith("at step 2: layer 0: storage_efficiency is 0.4 (< 0.5)")
    [alert] = story.ear.notices[0].alerts
    assert (alert.step, alert.value) == (2, 0.4)


def test_what_rises_in_a_gap_has_its_last_value() -> None:
    rises = {"warning": {"then": [{"after": "30s", "raise_to": "error"}]}}
    story = Story(escalation_rules=rises)
    assert story.windows(0.4, None, None) == ["WARNING refused", "ERROR refused"]
    assert "storage_efficiency is 0.4 (< 0.5)" in story.ear.heard[-1]
    [state] = story.monitor.health.firing
    assert state.value == 0.4


def test_another_thread_may_change_rules_while_they_are_judged() -> None:
    """As a channel's function does that calls back into the monitor."""
    story = Story()
    heard: list[Alert] = []

    def change() -> None:
        story.monitor.set_alert("storage_efficiency", "< 0.5", heard.append)
        story.monitor.silence({"match": {"alert": "later"}})
        story.monitor.acknowledge("refused")

    def judged(value: float) -> bool:
        if not threads:
            threads.append(threading.Thread(target=change))
            threads[0].start()
            threads[0].join(10)
        return False

    threads: list[threading.Thread] = []
    story.windows(0.9)  # from now on it is known which thread judges
    story.monitor.set_alert("storage_efficiency", judged, heard.append)
    assert story.windows(0.4) == ["WARNING refused"]
    assert not threads[0].is_alive()
    assert story.windows(0.4) == ["WARNING storage_efficiency:<"]
    assert [alert.rule for alert in heard] == ["storage_efficiency:<"]
    manager = story.monitor.state_dict()["alerts"]["manager"]
    assert len(manager["silences"]) == 1
    assert [key[0] for key in manager["acked"]] == ["refused"]


@pytest.mark.parametrize(
    ("metric", "condition", "message"),
    [
        (["avg_latency"], "> 1", "metric_name must be a string, got ['avg_latency']"),
        ("avg_latency", "> 1e400", "condition must be beside a finite number, got '> 1e400'"),
    ],
)
def test_a_wrong_alert_from_code_is_named(metric: Any, condition: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CMRPerformanceMonitor().set_alert(metric, condition, print)
    assert message in str(caught.value)


def resumed(story: Story, later: float, **settings: Any) -> Story:
    again = Story(**settings)
    again.clock.now = story.clock.now + later
    again.monitor.load_state_dict(json.loads(json.dumps(story.monitor.state_dict())))
    return again


@pytest.mark.parametrize(
    ("more", "before", "after", "told"),
    [
        ({"for": "60s"}, [0.4, 0.4], [0.4, 0.4, 0.4], ["WARNING refused"]),
        ({"keep_firing_for": "60s"}, [0.4, 0.9], [0.9, 0.9, 0.9, 0.9], ["RESOLVED refused"]),
        (
            {"no_data": {"mode": "alert", "for": "60s"}},
            [0.9, None],
            [None, None, None, None],
            ["WARNING refused"],
        ),
    ],
)
def test_nothing_passes_while_a_run_does_not_run(
    more: Any, before: Any, after: Any, told: list[str]
) -> None:
    """Windows of 20 s: two of them are not a minute, whatever lies between."""
    rules = {"refused": RULE | more}
    story = Story(rules=rules)
    story.windows(*before)
    again = resumed(story, 36000.0, rules=rules)
    assert again.windows(after[0]) == []
    assert again.windows(*after[1:]) == told


@pytest.mark.parametrize(
    "rules",
    [
        {"another": RULE | {"condition": ">", "thresholds": {"warning": 2}}},
        {"refused": RULE | {"metric": "capture_efficiency"}},
        {"refused": RULE | {"select": {"layer": None}, "thresholds": {"warning": 0.1}}},
    ],
    ids=["gone", "of another metric", "of the whole"],
)
def test_a_rule_that_is_gone_after_a_resume_has_ended(rules: Any) -> None:
    story = Story()
    assert story.windows(0.4) == ["WARNING refused"]
    again = resumed(story, 60.0, rules=rules)
    assert again.windows(0.4, 0.4) == ["RESOLVED refused"]
    assert "is not watched any more" in again.ear.heard[0]
