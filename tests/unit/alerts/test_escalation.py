"""An alert that nobody deals with rises; one that somebody deals with does not."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def send(self, notice: Any) -> None:
        self.heard.append(str(notice))


THEN = [{"after": "100s", "raise_to": "error", "unless": "acked"}]
ESCALATION = {
    "warning": {"delay": 0, "then": THEN},
    "error": {"then": [{"after": "10 windows", "raise_to": "critical", "unless": None}]},
}
RULE = {
    "metric": "storage_efficiency",
    "select": {"layer": "*"},
    "condition": "<",
    "thresholds": {"warning": {"fire": 0.5, "recover": 0.6}, "error": 0.1},
}


class Story:
    """A monitor whose windows are one step and 20 s long."""

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.model = nn.Linear(1, 1)
        self.model.probe = CMRProbe(4)
        self.monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 1, "on_monitor_error": "raise"},
            alert_config={"rules": {"refused": RULE}, "escalation_rules": ESCALATION},
            model=self.model,
            clock=self.clock,
        )
        self.ear = Ear()
        self.monitor.alerts.channels = [self.ear]

    def windows(self, number: int, stored: int = 3) -> list[str]:
        """So many windows; what was told in them."""
        before = len(self.ear.heard)
        for _ in range(number):
            self.model.probe.capture(attempted=10, captured=10, stored=stored)
            self.monitor.step()
            self.clock.advance(20.0)
        return self.ear.heard[before:]


def test_it_rises_and_nothing_stays_open_below_it() -> None:
    story = Story()
    text = "layer 4: storage_efficiency is 0.3 (< 0.5)"
    assert story.windows(5) == [f"[cmr-monitor] WARNING refused at step 0: {text}"]
    raised = f"{text} (raised from warning: nobody deals with it)"
    assert story.windows(1) == [f"[cmr-monitor] ERROR refused at step 5: {raised}"]
    assert story.windows(4) == []
    # fired in the first window; raised to error in between: ten windows on all the same
    assert story.windows(1) == [f"[cmr-monitor] CRITICAL refused at step 10: {raised}"]
    [alert] = story.monitor.health.firing
    assert (alert.severity, alert.fired_step) == ("critical", 0)
    assert story.monitor.health.status.value == "critical"
    ended = "layer 4: storage_efficiency is 0.9 again"
    assert story.windows(2, stored=9) == [f"[cmr-monitor] RESOLVED refused at step 11: {ended}"]
    assert story.monitor.health.score == 100
    assert [c.after.value for c in story.monitor.health_changes if c.component == "capture"] == [
        "warning",
        "critical",
        "healthy",
    ]


def test_an_acknowledged_alert_does_not_rise() -> None:
    story = Story()
    story.windows(2)
    story.monitor.acknowledge("refused", layer=4)
    assert story.windows(20) == []
    assert [state.severity for state in story.monitor.health.firing] == ["warning"]
    # what gets worse by itself is another matter, and then its own escalation holds
    [told] = story.windows(1, stored=0)
    assert told.startswith("[cmr-monitor] CRITICAL refused")
    assert len(story.windows(1, stored=9)) == 1
    assert story.windows(6)[-1].startswith("[cmr-monitor] ERROR refused"), "a new episode"


@pytest.mark.parametrize("told_again", [None, 100.0])
def test_a_firing_alert_is_told_again_only_where_that_is_asked_for(
    told_again: float | None,
) -> None:
    story = Story()
    config = story.monitor.alert_config
    route = config.route.model_copy(update={"repeat_interval": told_again})
    escalation: dict[Any, Any] = {}
    changed = config.model_copy(update={"route": route, "escalation_rules": escalation})
    monitor = CMRPerformanceMonitor(
        story.monitor.config, alert_config=changed, model=story.model, clock=story.clock
    )
    story.monitor.detach()
    monitor.alerts.channels = [story.ear]
    story.monitor = monitor
    assert len(story.windows(11)) == (1 if told_again is None else 3)
    monitor.acknowledge("refused")
    assert story.windows(20) == []
