"""What counts as wrong, and who is told."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from cmr_monitor_callbacks.config.channels import ChannelConfig, check_names, parse_channels
from cmr_monitor_callbacks.config.conditions import parse_expression
from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.presets import load_preset
from cmr_monitor_callbacks.config.rules import SEVERITIES, RuleConfig, Severity
from cmr_monitor_callbacks.config.spans import Duration, PositiveDuration, Span
from cmr_monitor_callbacks.config.stall import StallConfig
from cmr_monitor_callbacks.errors import nearest

MUTES: Final = ("sanity_check", "validation", "checkpoint", "profile")


class EscalationStep(Settings):
    """A firing alert that is not dealt with rises."""

    after: Span
    """How long it must have been firing."""
    raise_to: Severity
    """The severity that it gets."""
    unless: Literal["acked"] | None = "acked"
    """acked: not where somebody has acknowledged it; null: always."""


class EscalationConfig(Settings):
    """When a firing alert of one severity is notified, and what becomes of it."""

    immediate: bool = False
    """At once, whatever ``delay``, the grouping and the cooldown say."""
    delay: Duration = 0.0
    """Seconds that it must have been firing."""
    then: tuple[EscalationStep, ...] = ()
    """What becomes of it if it goes on."""


NO_ESCALATION: Final = EscalationConfig()
"""Of a severity of which the settings say nothing: told at once, and not raised."""


class WarmupConfig(Settings):
    """The start of a run, when numbers mean little: no rule is judged."""

    steps: int = Field(default=0, ge=0)
    """It lasts at least so many steps."""
    until: str | None = None
    """And until this holds: comparisons of metrics and ``steps`` with numbers, joined by ``and``
    and ``or``."""

    @field_validator("until")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        for part in parse_expression(text, {"steps"}) if text is not None else ():
            for name in (one.name for one in part):
                if name.startswith("whole."):
                    raise ValueError(f"{name}: numbers are of the whole here; leave 'whole.' out")
        return text


def _text_globs(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): str(v) if isinstance(v, (int, str)) else v for k, v in value.items()}
    return value


class InhibitConfig(Settings):
    """While one alert fires, others are not told of."""

    source: dict[str, str] = Field(min_length=1)
    """Labels of the alert that fires, as globs."""
    target: dict[str, str] = Field(min_length=1)
    """Labels of those that are not told of."""
    equal: tuple[str, ...] = ()
    """Labels that both must have alike; missing on both sides is alike."""

    @field_validator("source", "target", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return _text_globs(value)


class SilenceConfig(Settings):
    """Alerts that are known: nobody is told that they fire; that they ended, where it was told."""

    match: dict[str, str] = Field(min_length=1)
    """Labels, as globs."""
    from_step: int = Field(default=0, ge=0)
    """First step."""
    until_step: int | None = Field(default=None, ge=0)
    """Last step; null: no end."""
    until: datetime | None = None
    """When it ends; a date and time, with a zone or else in UTC; null: no end."""
    comment: str = ""
    """Why; the log says it (at level INFO) of an alert that is silenced."""

    @field_validator("match", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return _text_globs(value)


class OverflowConfig(Settings):
    """Most notices in a stretch of time."""

    n: int = Field(default=20, ge=1)
    """So many."""
    window: PositiveDuration = 600.0
    """In so many seconds."""
    overflow: Literal["summary"] = "summary"
    """What comes instead of those that are too many."""


class RouteConfig(Settings):
    """How alerts come together in notices."""

    group_by: tuple[str, ...] = ("alert", "component")
    """Labels; alerts that have them alike are told of in one notice."""
    group_wait: Duration = 0.0
    """Seconds that a new group waits for others to join it."""
    group_interval: Duration = 30.0
    """Seconds between a group's notice and one that tells of alerts which joined it later."""
    repeat_interval: PositiveDuration | None = None
    """Seconds after which an alert that goes on firing is told of again; null: never."""
    send_resolved: bool = True
    """Whether it is told that an alert ended."""
    max_per_window: OverflowConfig = OverflowConfig()
    """Most notices; critical ones are always sent."""


def _preset(name: str) -> Any:
    return load_preset("default")["alerts"][name]


class AlertConfig(Settings):
    """Rules and notifications (argument ``alerts``; the specification's dictionary).

    >>> AlertConfig(alert_cooldown=0).alert_channels
    ('console', 'log', 'tensorboard')
    """

    enable_alerts: bool = True
    """Whether rules are judged at all."""
    alert_channels: tuple[str, ...] = Field(
        default_factory=lambda: tuple(_preset("alert_channels"))
    )
    """Who is told: names of ``channels``. ``console`` (the terminal), ``log`` (Python's logging,
    logger ``cmr_monitor_callbacks.alerts``), ``tensorboard`` and ``jsonl`` need no settings."""
    channels: dict[str, SerializeAsAny[ChannelConfig]] = Field(
        default_factory=lambda: parse_channels({})
    )
    """Settings of the channels by name, see `cmr_monitor_callbacks.config.channels`."""
    severity_levels: tuple[Severity, ...] = SEVERITIES
    """Severities in use, in rising order; a rule that uses another is an error."""
    alert_cooldown: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Seconds between two notices that one alert fires; a rise in severity passes it."""
    escalation_rules: dict[Severity, EscalationConfig] = Field(
        default_factory=lambda: _preset("escalation_rules")
    )
    """When a firing alert of a severity is notified."""
    warmup: WarmupConfig = WarmupConfig()
    """The start of a run."""
    mute: tuple[Literal["sanity_check", "validation", "checkpoint", "profile"], ...] = MUTES
    """What makes times and rates of a window no data for rules, for they are not those of
    training."""
    rules: dict[str, RuleConfig] = Field(default_factory=lambda: _preset("rules"))
    """Rules by name; omitted: those of the preset ``default``. A list of rules, each with its
    ``name``, is allowed too."""
    baseline: str | None = None
    """The recorded run that rules with ``compare: {vs: baseline}`` compare with: its log folder, or
    its history file. Read once, before training."""
    rules_file: str | None = None
    """A YAML file of rules beside these, read again during the run where it was edited."""
    inhibit: tuple[InhibitConfig, ...] = Field(default_factory=lambda: tuple(_preset("inhibit")))
    """Alerts that keep others from being told of."""
    silences: tuple[SilenceConfig, ...] = ()
    """Alerts that are known."""
    route: RouteConfig = RouteConfig()
    """How alerts come together in notices."""
    stall: StallConfig = StallConfig()
    """The stall watchdog, where a Trainer drives the monitor: rules cannot see that steps stop."""

    @model_validator(mode="before")
    @classmethod
    def _preset_with_fewer_levels(cls, data: Any) -> Any:
        """The preset's own rules follow ``severity_levels``; a user's rules must name them."""
        if not isinstance(data, dict) or "severity_levels" not in data or "rules" in data:
            return data
        given = data["severity_levels"]
        levels = [s for s in SEVERITIES if isinstance(given, (list, tuple)) and s in given]
        if not levels:
            return data
        rules = {}
        for name, rule in _preset("rules").items():
            limits = rule["thresholds"]
            kept = {s: limit for s, limit in limits.items() if s in levels}
            lowest = next(iter(limits.values()))
            rules[name] = {**rule, "thresholds": kept or {levels[-1]: lowest}}
        return {**data, "rules": rules}

    @field_validator("channels", mode="wrap")
    @classmethod
    def _channels_by_kind(cls, value: Any, handler: Any) -> Any:
        del handler  # each kind has settings of its own
        return parse_channels(value)

    @field_validator("severity_levels")
    @classmethod
    def _ordered(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        if not levels or list(levels) != [s for s in SEVERITIES if s in levels]:
            raise ValueError(f"must be an ordered subset of {list(SEVERITIES)}, got {list(levels)}")
        return levels

    @field_validator("rules", mode="before")
    @classmethod
    def _rules_by_name(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        named: dict[str, Any] = {}
        for i, rule in enumerate(value):
            if not isinstance(rule, dict) or not isinstance(rule.get("name"), str):
                raise ValueError(f"rule {i} of the list needs a name, got {rule!r}")
            name = rule["name"]
            if name in named:
                raise ValueError(f"two rules of the list are named {name!r}")
            named[name] = {key: item for key, item in rule.items() if key != "name"}
        return named

    @model_validator(mode="after")
    def _names_of_channels(self) -> AlertConfig:
        try:
            check_names(self.alert_channels, self.channels)
        except ValueError as error:
            raise ValueError(f"alert_channels: {error}") from None
        return self

    @model_validator(mode="after")
    def _severities_in_use(self) -> AlertConfig:
        for name, rule in self.rules.items():
            for severity in rule.thresholds:
                if severity not in self.severity_levels and rule.enabled:
                    raise ValueError(
                        f"rules.{name} uses severity {severity!r}, which severity_levels leaves "
                        f"out (allowed: {', '.join(self.severity_levels)})"
                    )
        for severity, escalation in self.escalation_rules.items():
            for i, step in enumerate(escalation.then):
                where = f"escalation_rules.{severity}.then.{i}.raise_to"
                if SEVERITIES.index(step.raise_to) <= SEVERITIES.index(severity):
                    raise ValueError(f"{where} ({step.raise_to}) must be worse than {severity}")
                if step.raise_to not in self.severity_levels:
                    raise ValueError(f"{where}: {nearest(step.raise_to, self.severity_levels)}")
        return self
