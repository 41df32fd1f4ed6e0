"""Alerts from code: a metric, a condition, and a function that is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from cmr_monitor_callbacks.alerts.notice import Alert
from cmr_monitor_callbacks.catalogue import CUSTOM, canonical, is_custom
from cmr_monitor_callbacks.config.conditions import parse_comparison
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertRule, Severity, Threshold, Transition

Told = Callable[[Alert], Any]


class Watches:
    """Rules that functions were added with, and those functions."""

    def __init__(self) -> None:
        self.rules: list[AlertRule] = []
        self._told: dict[str, Told] = {}

    def add(self, metric: str, condition: Any, callback: Told, taken: Iterable[str]) -> AlertRule:
        """A rule of severity warning that fires at once.

        Args:
            metric: any name of a metric.
            condition: a comparison with a number as text, or a function of the value.
            callback: told when it starts firing and when it ends.
            taken: names of rules that there are.

        Raises:
            ConfigError: there is no such metric, or a part is of the wrong kind.
        """
        if not isinstance(metric, str):
            raise ConfigError(f"metric_name must be a string, got {metric!r}")
        try:
            name = canonical(metric)
        except KeyError as error:
            own = ""
            if is_custom(CUSTOM + metric):
                own = f"; a number of track_metric is {CUSTOM + metric!r} until it was tracked"
            raise ConfigError(f"metric_name: {error.args[0]}{own}") from None
        if not callable(callback):
            raise ConfigError(f"callback must be callable, got {callback!r}")
        rule = self._rule(name, condition)
        base, number = f"{name}:{rule.condition}", 1
        while base in {*taken, *self._told}:
            number += 1
            base = f"{name}:{rule.condition}:{number}"
        rule = AlertRule(base, rule.metrics, rule.condition, rule.thresholds, test=rule.test)
        self.rules.append(rule)
        self._told[base] = callback
        return rule

    def _rule(self, metric: str, condition: Any) -> AlertRule:
        if isinstance(condition, str):
            try:
                name, limit = parse_comparison(condition)
            except ValueError as error:
                raise ConfigError(f"condition {error}") from None
            if not math.isfinite(limit):
                raise ConfigError(f"condition must be beside a finite number, got {condition!r}")
            return AlertRule("", (metric,), name, (Threshold(Severity.WARNING, limit, limit),))
        if callable(condition):
            return AlertRule(
                "", (metric,), "function", (Threshold(Severity.WARNING),), test=condition
            )
        raise ConfigError(
            f"condition must be a comparison such as '> 0.1' or a function of the value, got "
            f"{condition!r}"
        )

    def tell(self, transition: Transition, note: Callable[[str, Exception], None]) -> None:
        """Call the function of an alert that began to fire or ended."""
        state = transition.state
        told = self._told.get(state.rule)
        resolved = transition.name == "resolved"
        if told is None or not (resolved or (state.phase.fires and not transition.before.fires)):
            return
        alert = Alert(
            state.rule,
            {"alert": state.rule, "component": state.component, **state.labels},
            transition.severity or Severity.WARNING,
            resolved,
            transition.message,
            state.value,
            state.threshold,
            transition.step,
            transition.time,
        )
        try:
            told(alert)
        except Exception as error:
            note(f"the function that is told of {state.rule}", error)
