"""Rules as the engine judges them, compiled from the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cmr_monitor_callbacks.catalogue import (
    BY_NAME,
    HEALTH_COMPONENTS,
    METRICS,
    OWN_METRICS,
    Polarity,
)
from cmr_monitor_callbacks.config import AlertConfig, AlertThresholds, RuleConfig
from cmr_monitor_callbacks.config.conditions import COMPARISONS, Expression, parse_expression
from cmr_monitor_callbacks.config.detectors import DIRECTED
from cmr_monitor_callbacks.config.spans import parse_span
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.health.states import Severity
from cmr_monitor_callbacks.layers import LayerId, matches
from cmr_monitor_callbacks.nonfinite import CAN_BE

Span = tuple[float, str]
"""An amount of ``steps``, ``windows`` or ``seconds``."""
Limit = float | tuple[float, float]
_MUTED_UNITS: Final = frozenset({"s", "samples/s", "tokens/s"})
_MUTED: Final = frozenset({"overhead_fraction"})


@dataclass(frozen=True)
class Threshold:
    """When a severity starts (``fire``) and when it ends (``recover``); NaN: no value is needed."""

    severity: Severity
    fire: Limit = math.nan
    recover: Limit = math.nan


@dataclass(frozen=True)
class AlertRule:
    """One rule.

    Attributes:
        name: its name.
        metrics: canonical names of the metrics, an alert for each.
        condition: see `RuleConfig.condition`.
        thresholds: in falling severity.
        layer: glob over layers, one alert for each; None: the model as a whole.
        rank: glob over ranks, one alert for each; None: over all ranks.
        over: ``window`` or ``run``.
        reduce_layers: how the selected layers become one, or ``none``.
        reduce_ranks: likewise the ranks.
        versus: what the value is compared with, '' for nothing.
        as_ratio: value / other, instead of value - other.
        channels: of the detector whose score is judged instead of the value; none: no detector.
        min_windows: windows that the detector only learns from.
        when: what must hold besides, of the same layer and rank; see `parse_expression`.
        hold: how long the condition must hold before it fires.
        m_of_n: it counts as holding if it held in m of the last n windows with data.
        keep: how long it goes on firing after the condition ended.
        no_data: ``keep``, ``ok``, ``alert`` or ``error``.
        no_data_for: how long there must be no data before that counts.
        labels: added to the alert's own.
        summary: format of the message; empty for a made one.
        runbook: where to read on.
        actions: done once when it starts firing.
        min_ranks: fewest ranks with which it is judged.
        warmup: whether it waits for the end of the warm-up.
        several: whether the metric tells its alerts apart.
        test: the condition as a function of the value, instead of ``condition``.
    """

    name: str
    metrics: tuple[str, ...]
    condition: str
    thresholds: tuple[Threshold, ...]
    layer: str | None = None
    rank: str | None = None
    over: str = "window"
    reduce_layers: str = "none"
    reduce_ranks: str = "none"
    versus: str = ""
    as_ratio: bool = True
    channels: tuple[str, ...] = ()
    min_windows: int = 0
    when: Expression = ()
    hold: Span = (0.0, "seconds")
    m_of_n: tuple[int, int] = (1, 1)
    keep: Span = (0.0, "seconds")
    no_data: str = "keep"
    no_data_for: Span = (0.0, "seconds")
    labels: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""
    runbook: str = ""
    actions: tuple[str, ...] = ()
    min_ranks: int = 1
    warmup: bool = True
    several: bool = False
    test: Callable[[float], bool] | None = None

    def component(self, metric: str) -> str:
        """Component on whose health an alert of this rule counts."""
        named = self.labels.get("component")
        owner = BY_NAME[metric].component
        other = "model" if owner == "custom" else "monitor"
        return named or (owner if owner in HEALTH_COMPONENTS else other)

    def muted(self, metric: str) -> bool:
        """Whether validation and the like make a window no data for it: times and rates."""
        info = BY_NAME[metric]
        return info.component == "timing" or info.unit in _MUTED_UNITS or metric in _MUTED

    def threshold(self, severity: Severity | None) -> Threshold:
        """The threshold of a severity; of one that an alert was raised to, the worst below it."""
        for threshold in self.thresholds:
            if severity is None or threshold.severity.rank <= severity.rank:
                return threshold
        return self.thresholds[-1]

    def message(self, values: Mapping[str, Any]) -> str:
        """The summary, filled in; one that cannot be filled in becomes a made one."""
        if self.summary:
            try:
                return self.summary.format(**values)
            except (LookupError, ValueError, TypeError, AttributeError):
                # a format for numbers, given a pair
                pass
        where = [f"{name} {values[name]}" for name in ("layer", "rank") if values[name] != ""]
        prefix = f"{', '.join(where)}: " if where else ""
        return f"{prefix}{values['metric']} {self._what(values)}"

    def _what(self, values: Mapping[str, Any]) -> str:
        if self.condition in ("nonfinite", "frozen", "absent"):
            return {
                "nonfinite": "got a value that is not finite",
                "frozen": f"has not changed from {values['value']:.3g}",
                "absent": "has no data",
            }[self.condition]
        if self.channels and self.test is None:
            return (
                f"shows a {values['channel']}: from {values['before']:.3g} to {values['now']:.3g} "
                f"(score {values['value']:.3g} {self.condition} {values['threshold']:.3g})"
            )
        beside = f" {'times' if self.as_ratio else 'over'} {self.versus}" if self.versus else ""
        limit = values["threshold"]
        shown = f"[{limit[0]:.3g}, {limit[1]:.3g}]" if isinstance(limit, tuple) else f"{limit:.3g}"
        condition = self.condition if self.test is None else "meets"
        shown = shown if self.test is None else getattr(self.test, "__name__", "its condition")
        return f"is {values['value']:.3g}{beside} ({condition} {shown})"


_SHORT_FORM: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "high_latency": (("avg_latency", ">"),),
    "low_efficiency": (("capture_efficiency", "<"), ("storage_efficiency", "<")),
    "high_error_rate": (("error_rate", ">"),),
}


def compile_rules(
    alerts: AlertConfig, thresholds: AlertThresholds | None = None
) -> tuple[AlertRule, ...]:
    """Rules of the configuration and of its short form ``alert_thresholds``.

    The short form's rules are of the highest severity in use up to ``error``.

    Raises:
        ConfigError: a threshold is set in two places, or for a rule that does not exist.
    """
    thresholds = thresholds or AlertThresholds()
    rules = {name: compile_rule(name, rule) for name, rule in alerts.rules.items() if rule.enabled}
    for key, value in (thresholds.model_extra or {}).items():
        rules[key] = _override(key, value, rules, alerts)
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
                name, (metric,), condition, (Threshold(severity[-1], limit, limit),)
            )
    return tuple(rules.values())


def compile_rule(name: str, config: RuleConfig) -> AlertRule:
    """One rule of the configuration."""
    thresholds = [
        Threshold(
            Severity(severity),
            math.nan if given.fire is None else given.fire,
            math.nan
            if given.fire is None
            else (given.fire if given.recover is None else given.recover),
        )
        for severity, given in config.thresholds.items()
    ]
    thresholds.sort(key=lambda t: -t.severity.rank)
    compare = config.compare
    versus = "" if compare is None else compare.vs
    several = config.metric_is_glob
    return AlertRule(
        name=name,
        metrics=tuple(_meant(config)) if several else (config.metric,),
        condition=config.condition,
        thresholds=tuple(thresholds),
        layer=config.select.layer,
        rank=config.select.rank,
        over=config.over,
        reduce_layers=config.reduce.layer,
        reduce_ranks=config.reduce.rank,
        versus=versus,
        as_ratio=compare is None or compare.as_ == "ratio",
        channels=() if config.detector is None else config.detector.channels,
        min_windows=0 if config.detector is None else config.detector.min_windows,
        when=() if config.when is None else parse_expression(config.when),
        hold=parse_span(config.for_),
        m_of_n=config.m_of_n or (1, 1),
        keep=parse_span(config.keep_firing_for),
        no_data=config.no_data.mode,
        no_data_for=parse_span(config.no_data.for_),
        labels=config.labels,
        summary=config.summary,
        runbook=config.runbook,
        actions=config.actions,
        min_ranks=max(config.min_ranks, 2 if versus.startswith("ranks.") else 1),
        warmup=config.warmup,
        several=several,
    )


def _meant(config: RuleConfig) -> Iterable[str]:
    """Metrics that a glob means; health judges other things than itself."""
    component = config.select.component or "*"
    directed = config.detector is not None and DIRECTED.issuperset(config.detector.channels)
    for info in (*METRICS, *OWN_METRICS):
        wanted = matches(component, info.component) and matches(config.metric, info.name)
        if config.condition == "nonfinite":
            wanted = wanted and info.name in CAN_BE
        if directed and info.polarity is Polarity.NEITHER:
            continue
        if wanted and info.component != "health":
            yield info.name


def _override(
    key: str, value: float, rules: Mapping[str, AlertRule], alerts: AlertConfig
) -> AlertRule:
    path = f"monitoring.alert_thresholds.{key}"
    if key in alerts.rules and key not in rules:
        raise ConfigError(f"{path}: rule {key!r} is switched off (alerts.rules.{key}.enabled)")
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
    if rule.condition not in COMPARISONS:
        raise ConfigError(
            f"{path}: the condition of rule {key!r}, {rule.condition!r}, takes no single number; "
            f"set alerts.rules.{key}.thresholds"
        )
    limit = float(value)
    return replace(rule, thresholds=(Threshold(rule.thresholds[0].severity, limit, limit),))


def literal_layers(pattern: str) -> list[LayerId]:
    """Layers that a glob names without any wildcard.

    >>> literal_layers("4|encoder|1*")
    [4, 'encoder']
    """
    parts = [part.strip() for part in pattern.split("|")]
    plain = [part for part in parts if part and not any(sign in part for sign in "*?[")]
    return [int(part) if part.isdecimal() else part for part in plain]
