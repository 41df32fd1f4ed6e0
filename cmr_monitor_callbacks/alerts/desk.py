"""The alert desk: judges a snapshot and tells whom it concerns."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from cmr_monitor_callbacks.alerts.channels import Channel, ConsoleChannel, LogChannel
from cmr_monitor_callbacks.alerts.manager import AlertManager
from cmr_monitor_callbacks.config import AlertConfig, AlertThresholds
from cmr_monitor_callbacks.health import (
    AlertState,
    HealthReport,
    Transition,
    assess,
    compile_rules,
    evaluate,
)
from cmr_monitor_callbacks.snapshot import Snapshot


class AlertDesk:
    """Rules, the alerts' states, and the channels.

    Args:
        config: rules and notifications.
        thresholds: the short form of rules.
        interval: least seconds between two evaluations.
        keep: transitions kept.

    Raises:
        ConfigError: a threshold is set in two places, or for a rule that does not exist.
    """

    def __init__(
        self, config: AlertConfig, thresholds: AlertThresholds, interval: float, keep: int
    ) -> None:
        self.rules = compile_rules(config, thresholds)
        self.console = ConsoleChannel()
        known: dict[str, Channel] = {"console": self.console, "log": LogChannel()}
        self.channels = [known[name] for name in config.alert_channels]
        self._config = config
        self._interval = interval
        self._keep = keep
        self.clear()

    def clear(self) -> None:
        """No alert is open, nothing was ever judged."""
        self.report = HealthReport()
        self.transitions: deque[Transition] = deque(maxlen=self._keep)
        self._states: dict[Any, AlertState] = {}
        self._manager = AlertManager(self._config)
        self._last = -math.inf

    def judge(self, snapshot: Snapshot, window: int) -> Sequence[Transition]:
        """Evaluate the rules on a window's snapshot if it is time, and send what is due."""
        if not self._config.enable_alerts:
            self.report = assess(self.rules, (), snapshot, self.report)
            return ()
        now = snapshot.time
        if now - self._last < self._interval:
            return ()
        self._last = now
        self._states, transitions = evaluate(
            self.rules, self._states, snapshot, step=snapshot.step, now=now, window=window
        )
        self.transitions.extend(transitions)
        self.report = assess(self.rules, self._states.values(), snapshot, self.report)
        if not self._states and not transitions:
            return transitions
        notices = self._manager.update(
            self._states.values(), transitions, step=snapshot.step, now=now
        )
        for notice in notices:
            for channel in self.channels:
                channel.send(notice)
        return transitions

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "alerts": [state.to_dict() for state in self._states.values()],
            "notices": self._manager.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; alerts of rules that are gone are left out."""
        self.clear()
        names = {rule.name for rule in self.rules}
        alerts = [AlertState.from_dict(item) for item in state["alerts"]]
        self._states = {alert.key: alert for alert in alerts if alert.rule in names}
        self._manager.load(
            {
                key: [item for item in items if item["rule"] in names]
                for key, items in state["notices"].items()
            }
        )
