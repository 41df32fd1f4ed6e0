"""What counts as wrong, and who is told."""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from cmr_monitor_callbacks.catalogue import canonical
from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.presets import load_preset

SEVERITIES: Final = ("warning", "error", "critical")
Severity = Literal["warning", "error", "critical"]
CHANNELS: Final = ("console", "log")

_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|windows?|ms|s|m|h|d)?\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_span(text: str | float | int) -> tuple[float, str]:
    """A length of time: an amount, and ``steps``, ``windows`` or ``seconds``.

    Raises:
        ValueError: the text says none of these.

    >>> parse_span("50 steps"), parse_span("2 windows"), parse_span("5m"), parse_span(0)
    ((50.0, 'steps'), (2.0, 'windows'), (300.0, 'seconds'), (0.0, 'seconds'))
    """
    found = _SPAN.fullmatch(str(text))
    if found is None:
        raise ValueError(
            f"must be like '50 steps', '3 windows', '30s', '5m' or seconds, got {text!r}"
        )
    amount, unit = float(found[1]), found[2] or "s"
    if unit.startswith(("step", "window")):
        return amount, unit.rstrip("s") + "s"
    return amount * _SECONDS[unit], "seconds"


class ThresholdConfig(Settings):
    """When a severity starts and when it ends."""

    fire: float = Field(allow_inf_nan=False)
    """The rule's condition against this value starts the alert."""
    recover: float | None = Field(default=None, allow_inf_nan=False)
    """A firing alert ends when the condition against this value no longer holds; null: ``fire``."""


class SelectConfig(Settings):
    """Which series a rule looks at."""

    layer: str | None = None
    """Glob over layer ids, ``|`` for alternatives; one alert for each layer; null: the whole."""


class RuleConfig(Settings):
    """One alert rule."""

    metric: str
    """Name of the metric, any of its names."""
    select: SelectConfig = SelectConfig()
    """Which series; omitted: the model as a whole."""
    over: Literal["window", "run"] = "window"
    """The last window, or the run so far; gauges are always what holds now."""
    condition: Literal[">", ">=", "<", "<=", "==", "!="]
    """How the value stands to the threshold when something is wrong."""
    thresholds: dict[Severity, ThresholdConfig] = Field(min_length=1)
    """By severity; the highest one met counts. A plain number is ``fire``."""
    for_: str | float = Field(default=0, alias="for")
    """How long the condition must hold before the alert fires: steps, windows or a duration."""
    summary: str = ""
    """What to say; may use {layer}, {metric}, {value}, {threshold}, {severity}, {condition}."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        try:
            return canonical(name)
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    @field_validator("for_")
    @classmethod
    def _valid_span(cls, value: str | float) -> str | float:
        parse_span(value)
        return value

    @field_validator("thresholds", mode="before")
    @classmethod
    def _short_thresholds(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: {"fire": v} if isinstance(v, (int, float)) else v for k, v in value.items()}

    @field_validator("summary")
    @classmethod
    def _valid_summary(cls, text: str) -> str:
        try:
            text.format(
                layer=0, metric="", value=0.5, threshold=0.5, severity="", condition="", step=0
            )
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"cannot be filled in ({error!r}); allowed: "
                "{layer} {metric} {value} {threshold} {severity} {condition} {step}"
            ) from None
        return text

    @model_validator(mode="after")
    def _recover_on_the_good_side(self) -> RuleConfig:
        for severity, threshold in self.thresholds.items():
            if threshold.recover is None:
                continue
            over = self.condition in (">", ">=") and threshold.recover > threshold.fire
            under = self.condition in ("<", "<=") and threshold.recover < threshold.fire
            if over or under:
                raise ValueError(
                    f"thresholds.{severity}.recover ({threshold.recover:g}) must lie on the good "
                    f"side of fire ({threshold.fire:g}) for condition {self.condition!r}"
                )
        return self


class EscalationConfig(Settings):
    """When a firing alert of one severity is notified."""

    immediate: bool = False
    """At once, whatever ``delay`` and the cooldown say."""
    delay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Seconds that it must have been firing."""


def _default_escalation() -> dict[Any, Any]:
    escalation: dict[Any, Any] = load_preset("default")["alerts"]["escalation_rules"]
    return escalation


def _default_rules() -> dict[str, Any]:
    rules: dict[str, Any] = load_preset("default")["alerts"]["rules"]
    return rules


class AlertConfig(Settings):
    """Rules and notifications (argument ``alerts``; the specification's dictionary).

    >>> AlertConfig(alert_cooldown=0).alert_channels
    ('console', 'log')
    """

    enable_alerts: bool = True
    """Whether rules are judged at all."""
    alert_channels: tuple[Literal["console", "log"], ...] = ("console", "log")
    """Who is told: the terminal, Python's logging (logger ``cmr_monitor_callbacks.alerts``)."""
    severity_levels: tuple[Severity, ...] = SEVERITIES
    """Severities in use, in rising order; a rule that uses another is an error."""
    alert_cooldown: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Seconds between two notices of one alert; a rise in severity passes it."""
    escalation_rules: dict[Severity, EscalationConfig] = Field(default_factory=_default_escalation)
    """When a firing alert of a severity is notified."""
    rules: dict[str, RuleConfig] = Field(default_factory=_default_rules)
    """Rules by name; omitted: those of the preset ``default``."""

    @field_validator("severity_levels")
    @classmethod
    def _ordered(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        if not levels or list(levels) != [s for s in SEVERITIES if s in levels]:
            raise ValueError(f"must be an ordered subset of {list(SEVERITIES)}, got {list(levels)}")
        return levels

    @model_validator(mode="after")
    def _severities_in_use(self) -> AlertConfig:
        for name, rule in self.rules.items():
            for severity in rule.thresholds:
                if severity not in self.severity_levels:
                    raise ValueError(
                        f"rules.{name} uses severity {severity!r}, which severity_levels leaves "
                        f"out (allowed: {', '.join(self.severity_levels)})"
                    )
        return self
