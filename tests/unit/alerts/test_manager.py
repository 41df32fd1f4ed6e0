"""Notices by hand-worked timelines; no clock but the one passed in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from cmr_monitor_callbacks.alerts import Alert, AlertManager, Notice
from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.health import AlertState, Phase, Severity, Transition

INACTIVE, PENDING, FIRING = Phase.INACTIVE, Phase.PENDING, Phase.FIRING
NOW = {"warning": {"delay": 0}, "error": {"delay": 0}, "critical": {"immediate": True}}


class Story:
    """An alert's life: say how it stands at a time, and see who is told."""

    def __init__(self, escalation: Any = None, cooldown: float = 60.0) -> None:
        settings: dict[str, Any] = {
            "rules": {},
            "alert_cooldown": cooldown,
            "route": {"group_interval": 0},
        }
        if escalation is not None:
            settings["escalation_rules"] = escalation
        self.config = parse(AlertConfig, settings, "alerts")
        self.manager = AlertManager(self.config)
        self.state = self.well()

    @staticmethod
    def well() -> AlertState:
        return AlertState("slow", "avg_latency", 4, component="timing")

    def at(self, now: float, severity: str | None, pending: bool = False) -> list[str]:
        old = self.state
        if severity is None:
            self.state = self.well()
        else:
            fired = now if math.isnan(old.fired_time) else old.fired_time
            self.state = replace(
                old,
                phase=PENDING if pending else FIRING,
                severity=Severity(severity),
                message=f"at {now:g}",
                fired_time=math.nan if pending else fired,
            )
        changed = (old.phase, old.severity) != (self.state.phase, self.state.severity)
        step = int(now)
        moves = [Transition(self.state, old.phase, step, now, f"at {now:g}")] if changed else []
        open_ones = [] if self.state.phase is INACTIVE else [self.state]
        notices = self.manager.update(open_ones, moves, {}, step=step, now=now)
        told = [alert for notice in notices for alert in notice.alerts]
        assert all(alert.rule == "slow" and alert.labels["layer"] == "4" for alert in told)
        return ["resolved" if n.resolved else n.severity.value for n in notices]

    def resume(self) -> None:
        """From a checkpoint."""
        saved = json.loads(json.dumps(self.manager.state()))
        self.manager = AlertManager(self.config)
        self.manager.load(saved, ["slow"])


def test_default_delays_by_severity() -> None:
    error = Story()
    assert [error.at(t, "error") for t in (0, 29.9, 30, 100)] == [[], [], ["error"], []]
    warning = Story()
    assert [warning.at(t, "warning") for t in (0, 299, 300)] == [[], [], ["warning"]]
    critical = Story()
    assert critical.at(0, "critical") == ["critical"]


def test_the_delay_counts_from_firing_not_from_pending() -> None:
    story = Story()
    assert story.at(0, "error", pending=True) == []
    assert story.at(100, "error") == []
    assert story.at(129, "error") == []
    assert story.at(130, "error") == ["error"]


def test_resolved_if_told_and_only_then() -> None:
    story = Story()
    assert story.at(0, "error") == []
    assert story.at(10, None) == []
    assert story.at(20, "error") == []
    assert story.at(50, "error") == ["error"]
    assert story.at(51, None) == ["resolved"]
    assert story.at(52, None) == []


def test_pending_is_never_told() -> None:
    story = Story(NOW)
    assert story.at(0, "critical", pending=True) == []
    assert story.at(1, None) == []


def test_one_notice_an_episode_and_a_cooldown_between_episodes() -> None:
    story = Story(NOW)
    assert story.at(0, "error") == ["error"]
    assert story.at(10, None) == ["resolved"]
    assert story.at(20, "error") == []
    assert story.at(59, "error") == []
    assert story.at(60, "error") == ["error"]
    assert story.at(70, None) == ["resolved"]
    assert story.at(80, "error") == []
    assert story.at(90, None) == [], "nobody heard of it"
    assert story.at(130, "error") == ["error"]


def test_a_rise_passes_the_cooldown() -> None:
    story = Story(NOW | {"critical": {"delay": 0}})
    assert story.at(0, "warning") == ["warning"]
    assert story.at(1, "warning") == []
    assert story.at(2, "error") == ["error"]
    assert story.at(3, "critical") == ["critical"]
    assert story.at(4, "warning") == []
    assert story.at(5, None) == ["resolved"]


def test_a_rise_waits_for_its_own_delay_since_firing() -> None:
    story = Story(NOW | {"error": {"delay": 30}})
    assert story.at(0, "warning") == ["warning"]
    assert story.at(10, "error") == []
    assert story.at(30, "error") == ["error"]


def test_immediate_passes_delay_and_cooldown() -> None:
    story = Story({"critical": {"immediate": True, "delay": 500}})
    assert story.at(0, "critical") == ["critical"]
    assert story.at(1, None) == ["resolved"]
    assert story.at(2, "critical") == ["critical"]


def test_without_a_cooldown_every_episode_is_told() -> None:
    story = Story(NOW, cooldown=0)
    told = [story.at(t, "error" if t % 2 == 0 else None) for t in range(4)]
    assert told == [["error"], ["resolved"], ["error"], ["resolved"]]


def test_a_severity_without_a_rule_is_told_at_once() -> None:
    assert Story({}).at(0, "warning") == ["warning"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_checkpoint_changes_nothing(resumed: bool) -> None:
    story = Story(NOW | {"error": {"delay": 30}})
    moves = [(0, "error"), (29, "error"), (30, "error"), (40, None), (45, "warning"), (89, None)]
    moves += [(95, "warning"), (96, None)]
    told = []
    for now, severity in moves:
        told.append(story.at(now, severity))
        if resumed:
            story.resume()
    assert told == [[], [], ["error"], ["resolved"], [], [], ["warning"], ["resolved"]]


def test_alerts_have_each_their_own_cooldown() -> None:
    story = Story(NOW)
    states = [
        AlertState(
            "slow",
            "avg_latency",
            layer,
            component="timing",
            phase=FIRING,
            severity=Severity.ERROR,
            fired_time=0.0,
            message=f"layer {layer} is slow",
        )
        for layer in (4, 6)
    ]
    moves = [Transition(s, INACTIVE, 0, 0.0, "m", s.severity) for s in states]
    first = story.manager.update(states[:1], moves[:1], {}, step=0, now=0.0)
    both = story.manager.update(states, moves[1:], {}, step=40, now=40.0)
    told = [[alert.labels["layer"] for alert in n.alerts] for n in (*first, *both)]
    assert told == [["4"], ["6"]]


def test_the_text_of_a_notice() -> None:
    labels = {"alert": "slow", "layer": "4"}
    one = Alert("slow", labels, Severity.ERROR, False, "layer 4: too slow", 0.3, 0.1, 120, 0.0)
    notice = Notice((one,), Severity.ERROR, False, 120, 0.0)
    assert str(notice) == "[cmr-monitor] ERROR slow at step 120: layer 4: too slow"
    ended = replace(one, resolved=True, message="fine again")
    over = replace(notice, alerts=(ended,), resolved=True)
    assert str(over) == "[cmr-monitor] RESOLVED slow at step 120: fine again"
