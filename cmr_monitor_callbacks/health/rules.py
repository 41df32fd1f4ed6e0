"""Rules as the engine judges them, compiled from the configuration."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.config import AlertConfig, AlertThresholds, RuleConfig
from cmr_monitor_callbacks.config.alerts import parse_span
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.health.states import Severity
from cmr_monitor_callbacks.layers import LayerId

CONDITIONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Threshold:
    """When a severity starts (``fire``) and when it ends (``recover``)."""

    severity: Severity
    fire: float
    recover: float


@dataclass(frozen=True)
class AlertRule:
    """One rule.

    Attributes:
        name: its name.
        metric: canonical name of the metric.
        condition: one of `CONDITIONS`.
        thresholds: in falling severity.
        layer: glob over layers, one alert for each; None: the model as a whole.
        over: ``window`` or ``run``.
        hold: how long the condition must hold before it fires.
        hold_unit: ``steps``, ``windows`` or ``seconds``.
        summary: format of the message; empty for a made one.
    """

    name: str
    metric: str
    condition: str
    thresholds: tuple[Threshold, ...]
    layer: str | None = None
    over: Literal["window", "run"] = "window"
    hold: float = 0.0
    hold_unit: str = "seconds"
    summary: str = ""

    @property
    def component(self) -> str:
        """Component whose health it judges."""
        return BY_NAME[self.metric].component

    def met(self, value: float, threshold: float) -> bool:
        """Whether something is wrong; NaN never is."""
        return value == value and CONDITIONS[self.condition](value, threshold)

    def suspects(self, value: float) -> bool:
        """Whether any threshold is met."""
        return any(self.met(value, threshold.fire) for threshold in self.thresholds)

    def message(self, layer: LayerId | None, value: float, threshold: Threshold, step: int) -> str:
        """The summary, filled in."""
        text = self.summary or "{metric} is {value:.3g} ({condition} {threshold:.3g})"
        if not self.summary and layer is not None:
            text = "layer {layer}: " + text
        return text.format(
            layer=layer,
            metric=self.metric,
            value=value,
            threshold=threshold.fire,
            severity=threshold.severity.value,
            condition=self.condition,
            step=step,
        )


_SHORT_FORM: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "high_latency": (("avg_latency", ">"),),
    "low_efficiency": (("capture_efficiency", "<"), ("storage_efficiency", "<")),
    "high_error_rate": (("error_rate", ">"),),
}


def compile_rules(alerts: AlertConfig, thresholds: AlertThresholds) -> tuple[AlertRule, ...]:
    """Rules of the configuration and of its short form ``alert_thresholds``.

    The short form's rules are of the highest severity in use up to ``error``.

    Raises:
        ConfigError: a threshold is set in two places, or for a rule that does not exist.
    """
    rules = {name: _compile(name, rule) for name, rule in alerts.rules.items()}
    for key, value in (thresholds.model_extra or {}).items():
        rules[key] = _override(key, value, rules)
    severity = [Severity(s) for s in alerts.severity_levels if s != "critical"] or [
        Severity.CRITICAL
    ]
    for key, targets in _SHORT_FORM.items():
        limit = getattr(thresholds, key)
        if limit is None:
            continue
        if key in rules:
            raise ConfigError(
                f"{key} is set in monitoring.alert_thresholds and as alerts.rules.{key}; keep one"
            )
        for metric, condition in targets:
            name = key if len(targets) == 1 else f"{key}:{metric}"
            rules[name] = AlertRule(
                name, metric, condition, (Threshold(severity[-1], limit, limit),)
            )
    return tuple(rules.values())


def _compile(name: str, config: RuleConfig) -> AlertRule:
    hold, unit = parse_span(config.for_)
    thresholds = [
        Threshold(Severity(s), t.fire, t.fire if t.recover is None else t.recover)
        for s, t in config.thresholds.items()
    ]
    thresholds.sort(key=lambda t: -t.severity.rank)
    return AlertRule(
        name=name,
        metric=config.metric,
        condition=config.condition,
        thresholds=tuple(thresholds),
        layer=config.select.layer,
        over=config.over,
        hold=hold,
        hold_unit=unit,
        summary=config.summary,
    )


def _override(key: str, value: float, rules: Mapping[str, AlertRule]) -> AlertRule:
    path = f"monitoring.alert_thresholds.{key}"
    if key not in rules:
        raise ConfigError(
            f"{path} is neither a threshold nor a rule; {nearest(key, [*_SHORT_FORM, *rules])}"
        )
    rule = rules[key]
    if len(rule.thresholds) != 1:
        raise ConfigError(
            f"{path}: rule {key!r} has {len(rule.thresholds)} thresholds; "
            f"set alerts.rules.{key}.thresholds"
        )
    limit = float(value)
    return replace(rule, thresholds=(Threshold(rule.thresholds[0].severity, limit, limit),))
