"""Notices by hand-worked timelines; no clock but the one passed in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from cmr_monitor_callbacks.alerts import AlertManager, Notice
from cmr_monitor_callbacks.config import AlertConfig, parse
from cmr_monitor_callbacks.health import AlertState, Phase, Severity, Transition

INACTIVE, PENDING, FIRING = Phase.INACTIVE, Phase.PENDING, Phase.FIRING
NOW = {"warning": {"delay": 0}, "error": {"delay": 0}, "critical": {"immediate": True}}


class Story:
    """An alert's life: say how it stands at a time, and see who is told."""

    def __init__(self, escalation: Any = None, cooldown: float = 60.0) -> None:
        settings: dict[str, Any] = {"rules": {}, "alert_cooldown": cooldown}
        if escalation is not None:
            settings["escalation_rules"] = escalation
        self.config = parse(AlertConfig, settings, "alerts")
        self.manager = AlertManager(self.config)
        self.state = AlertState("slow", 4)

    def at(self, now: float, severity: str | None, pending: bool = False) -> list[str]:
        old = self.state
        if severity is None:
            self.state = AlertState("slow", 4, value=1.0)
        else:
            fired = now if old.fired_time is None else old.fired_time
            self.state = replace(
                old,
                phase=PENDING if pending else FIRING,
                severity=Severity(severity),
                fired_time=None if pending else fired,
            )
        changed = (old.phase, old.severity) != (self.state.phase, self.state.severity)
        step = int(now)
        moves = [Transition(self.state, old.phase, step, now, f"at {now:g}")] if changed else []
        open_ones = [] if self.state.phase is INACTIVE else [self.state]
        notices = self.manager.update(open_ones, moves, step=step, now=now)
        assert all(isinstance(n, Notice) and n.rule == "slow" and n.layer == 4 for n in notices)
        return ["resolved" if n.resolved else n.severity.value for n in notices]

    def resume(self) -> None:
        """From a checkpoint."""
        saved = json.loads(json.dumps(self.manager.state()))
        self.manager = AlertManager(self.config)
        self.manager.load(saved)


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
    states = [AlertState("slow", i, FIRING, Severity.ERROR, fired_time=0.0) for i in (4, 6)]
    moves = [Transition(s, INACTIVE, 0, 0.0, "m") for s in states]
    notices = story.manager.update(states, moves, step=0, now=0.0)
    assert [n.layer for n in notices] == [4, 6]


def test_the_text_of_a_notice() -> None:
    notice = Notice("slow", 4, False, Severity.ERROR, "layer 4: too slow", 120)
    assert str(notice) == "[cmr-monitor] ERROR slow at step 120: layer 4: too slow"
    over = replace(notice, resolved=True, message="fine again")
    assert str(over) == "[cmr-monitor] RESOLVED slow at step 120: fine again"
    assert math.isnan(AlertState("slow").value)
