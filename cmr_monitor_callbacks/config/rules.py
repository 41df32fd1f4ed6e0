"""What a rule says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from cmr_monitor_callbacks.catalogue import (
    BY_NAME,
    HEALTH_COMPONENTS,
    Kind,
    Polarity,
    canonical,
    is_custom,
)
from cmr_monitor_callbacks.config.conditions import parse_expression
from cmr_monitor_callbacks.config.detectors import DIRECTED, DetectorConfig
from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.spans import Span
from cmr_monitor_callbacks.errors import nearest
from cmr_monitor_callbacks.layers import matches

SEVERITIES: Final = ("warning", "error", "critical")
Severity = Literal["warning", "error", "critical"]
Condition = Literal[">", ">=", "<", "<=", "==", "!=", "outside", "nonfinite", "frozen", "absent"]
VALUELESS: Final = ("nonfinite", "frozen", "absent")
"""Conditions that stand without a threshold's value."""
Fold = Literal["max", "min", "mean", "median", "p95", "none"]
Number = float | tuple[float, float]
_FILLED: Final = (
    "alert",
    "layer",
    "rank",
    "where",
    "metric",
    "value",
    "threshold",
    "severity",
    "condition",
    "step",
    "component",
    "channel",
    "before",
    "now",
)
"""What a summary may use."""
_NUMBERS: Final = ("value", "threshold", "before", "now")


class ThresholdConfig(Settings):
    """When a severity starts and when it ends."""

    fire: float | tuple[float, float] | None = None
    """The rule's condition against this value starts the alert; ``[a, b]`` for ``outside``; null
    for ``nonfinite``, ``frozen`` and ``absent``."""
    recover: float | tuple[float, float] | None = None
    """A firing alert ends when the condition against this value no longer holds; null: ``fire``."""

    @field_validator("fire", "recover")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(-1e308 < number < 1e308 for number in numbers):
            raise ValueError(f"must be finite, got {value!r}")
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            raise ValueError(f"must be [low, high], got {list(numbers)}")
        return value


class SelectConfig(Settings):
    """Which series a rule looks at."""

    layer: str | None = None
    """Glob over layer ids, ``|`` for alternatives; one alert for each layer; null: the whole."""
    rank: str | None = None
    """Glob over ranks; one alert for each rank; null: over all ranks."""
    component: str | None = None
    """Glob over components, where ``metric`` is a glob; null: all."""

    @field_validator("layer", "rank", "component", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ReduceConfig(Settings):
    """Many series to one, before the condition."""

    layer: Fold = "none"
    """Over the selected layers."""
    rank: Fold = "none"
    """Over the selected ranks."""


class CompareConfig(Settings):
    """A value beside another instead of alone."""

    vs: Literal["ranks.median", "ranks.best", "self.best", "self.ewma", "baseline"]
    """The selected ranks' median or best; the series' own best of the run so far (the least where
    the rule fires above its threshold, else the greatest) or its average of about 20 windows, which
    stands still while the rule's condition holds; the recorded run that ``alerts.baseline`` names,
    at the same step."""
    as_: Literal["ratio", "difference"] = Field(default="ratio", alias="as")
    """value / other, or value - other."""


class NoDataConfig(Settings):
    """What becomes of an alert whose series has no data."""

    mode: Literal["keep", "ok", "alert", "error"] = "keep"
    """keep: it stays as it is; ok: as if the condition did not hold; alert: it fires; error: it
    fires with severity error."""
    for_: Span = Field(default=0, alias="for")
    """How long there must be no data before ``ok``, ``alert`` or ``error`` counts."""


class RuleConfig(Settings):
    """One alert rule."""

    enabled: bool = True
    """Whether it is judged; false switches a preset's rule off."""
    metric: str
    """Name of the metric, any of its names; a glob for several (one alert for each)."""
    select: SelectConfig = SelectConfig()
    """Which series; omitted: the model as a whole, over all ranks."""
    over: Literal["window", "run"] = "window"
    """The last window, or the run so far; gauges are always what holds now."""
    reduce: ReduceConfig = ReduceConfig()
    """Many series to one."""
    compare: CompareConfig | None = None
    """The value beside another; null: the value itself."""
    condition: Condition = ">"
    """How the value stands to the threshold when something is wrong."""
    when: str | None = None
    """What must hold besides, of the same series: comparisons of metrics with numbers, joined by
    ``and`` and ``or``; null: nothing."""
    thresholds: dict[Severity, ThresholdConfig] = Field(min_length=1)
    """By severity; the highest one met counts. A plain number is ``fire``."""
    for_: Span = Field(default=0, alias="for")
    """How long the condition must hold before the alert fires: steps, windows or a duration."""
    m_of_n: tuple[int, int] | None = None
    """The condition counts as holding if it held in m of the last n windows with data."""
    keep_firing_for: Span = 0
    """How long a firing alert goes on after its condition ended."""
    no_data: NoDataConfig = NoDataConfig()
    """What becomes of an alert without data."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Added to the alert's own labels; ``component`` says on whose health it counts."""
    summary: str = ""
    """What to say; may use {layer}, {rank}, {metric}, {value}, {threshold}, {severity}."""
    runbook: str = ""
    """Where to read on: a path or an address."""
    actions: tuple[Literal["log", "checkpoint", "stop", "raise"], ...] = ()
    """Done once when it starts firing, on all ranks."""
    min_ranks: int = Field(default=1, ge=1)
    """Fewest ranks with which it is judged; comparing ranks needs two."""
    warmup: bool = True
    """Whether it waits until the warm-up is over."""
    detector: DetectorConfig | None = None
    """A detector of anomalies, whose score the rule judges; null: the value itself."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if _is_glob(name):
            if not any(matches(name, metric) for metric in BY_NAME):
                raise ValueError(f"{name!r} matches no metric")
            return name
        try:
            return canonical(name)
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    @field_validator("when")
    @classmethod
    def _readable(cls, text: str | None) -> str | None:
        if text is not None:
            parse_expression(text)
        return text

    @field_validator("thresholds", mode="before")
    @classmethod
    def _short_thresholds(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        short = (int, float, list, tuple)
        return {
            severity: {"fire": given}
            if isinstance(given, short) and not isinstance(given, bool)
            else {}
            if given is None
            else given
            for severity, given in value.items()
        }

    @field_validator("m_of_n")
    @classmethod
    def _some_of_many(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1] <= 64:
            raise ValueError(f"must be [m, n] with 1 <= m <= n <= 64, got {list(value)}")
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _text_labels(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        taken = sorted(set(map(str, value)) & {"alert", "severity", "layer", "rank", "metric"})
        if taken:
            raise ValueError(f"{taken[0]} is a label that the alert has of itself")
        component = value.get("component")
        if component is not None and component not in HEALTH_COMPONENTS:
            raise ValueError(f"component {component!r}; {nearest(component, HEALTH_COMPONENTS)}")
        return {str(key): str(item) for key, item in value.items()}

    @field_validator("summary")
    @classmethod
    def _valid_summary(cls, text: str) -> str:
        filled = {name: "" for name in _FILLED if name not in (*_NUMBERS, "step")}
        try:
            text.format(**filled, **dict.fromkeys(_NUMBERS, 0.5), step=0)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            allowed = " ".join(f"{{{name}}}" for name in _FILLED)
            raise ValueError(f"cannot be filled in ({error!r}); allowed: {allowed}") from None
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> RuleConfig:
        self._check_detector()
        for severity, threshold in self.thresholds.items():
            self._check_threshold(severity, threshold)
        self._check_order()
        versus = "" if self.compare is None else self.compare.vs
        if versus.startswith("ranks.") and self.select.rank is None:
            raise ValueError(f"compare.vs {versus!r} needs select.rank, such as '*'")
        if self.compare is not None and self.condition in VALUELESS:
            raise ValueError(f"condition {self.condition!r} compares nothing; leave compare out")
        for name in ("layer", "rank"):
            if getattr(self.reduce, name) != "none" and getattr(self.select, name) is None:
                raise ValueError(f"reduce.{name} needs select.{name}, such as '*'")
        info = None if self.metric_is_glob else BY_NAME[self.metric]
        self._check_custom()
        self._check_baseline()
        if info is not None and self.select.layer is not None and info.kind is Kind.SCORE:
            raise ValueError(f"{self.metric} is of the whole; leave select.layer out")
        if info is not None and self.select.rank is not None and info.kind is Kind.QUANTILE:
            raise ValueError(f"{self.metric} is known over all ranks only; leave select.rank out")
        if self.when is not None and (self.reduce.layer, self.reduce.rank) != ("none", "none"):
            raise ValueError("when speaks of single series; leave reduce out")
        if self.select.component is not None and info is not None:
            raise ValueError("select.component needs a glob as metric, such as '*'")
        return self

    @property
    def metric_is_glob(self) -> bool:
        """Whether ``metric`` may mean several."""
        return _is_glob(self.metric)

    def _check_custom(self) -> None:
        """A user's own number is of all ranks and of the whole."""
        if not is_custom(self.metric):
            return
        if self.select.layer is not None or self.select.rank is not None:
            raise ValueError(f"{self.metric} is of the whole; leave select.layer and .rank out")
        if self.condition == "nonfinite":
            raise ValueError(
                f"{self.metric} has finite values alone; those that were not are in invalid_samples"
            )

    def _check_baseline(self) -> None:
        """The recorded run has windows of single series; over the run it has counters' alone."""
        if self.compare is None or self.compare.vs != "baseline":
            return
        if (self.reduce.layer, self.reduce.rank) != ("none", "none"):
            raise ValueError("compare.vs 'baseline' speaks of single series; leave reduce out")
        kinds = {Kind.COUNTER, Kind.GAUGE}
        if self.over == "run" and (self.metric_is_glob or BY_NAME[self.metric].kind not in kinds):
            raise ValueError(
                f"a recorded run has {self.metric} of each window; over must be 'window' for "
                "compare.vs 'baseline'"
            )

    def _check_detector(self) -> None:
        """A detector gives a score instead of the value: more of it is worse."""
        if self.detector is None:
            return
        if self.condition not in (">", ">="):
            raise ValueError(
                f"condition must be '>' or '>=' with a detector, whose score it judges, got "
                f"{self.condition!r}"
            )
        if self.compare is not None and not self.compare.vs.startswith("ranks."):
            raise ValueError(
                f"compare.vs {self.compare.vs!r} and detector both compare the value with what it "
                "was; leave one out (allowed with a detector: ranks.median, ranks.best)"
            )
        if self.over != "window":
            raise ValueError(f"over must be 'window' with a detector, got {self.over!r}")
        info = None if self.metric_is_glob else BY_NAME[self.metric]
        if info is not None and info.polarity is Polarity.NEITHER:
            lost = sorted(DIRECTED.intersection(self.detector.channels))
            if lost:
                raise ValueError(
                    f"detector.channels: {lost[0]!r} needs a direction that is bad, and "
                    f"{self.metric} has none (allowed: shift, drift)"
                )

    def _check_threshold(self, severity: str, threshold: ThresholdConfig) -> None:
        where = f"thresholds.{severity}"
        fire, recover = threshold.fire, threshold.recover
        if self.condition in VALUELESS:
            if fire is not None or recover is not None:
                raise ValueError(f"{where} must be {{}} for condition {self.condition!r}")
            return
        if fire is None:
            raise ValueError(f"{where}.fire is required for condition {self.condition!r}")
        pair = self.condition == "outside"
        for name, value in (("fire", fire), ("recover", recover)):
            if value is not None and isinstance(value, tuple) != pair:
                wanted = "[low, high]" if pair else "one number"
                raise ValueError(f"{where}.{name} must be {wanted} for {self.condition!r}")
        if recover is not None and not _recovers(self.condition, fire, recover):
            raise ValueError(
                f"{where}.recover ({_shown(recover)}) must lie on the good side of fire "
                f"({_shown(fire)}) for condition {self.condition!r}"
            )

    def _check_order(self) -> None:
        """A worse severity must not be met before a milder one."""
        given = [(s, self.thresholds[s].fire) for s in SEVERITIES if s in self.thresholds]
        for (mild, mild_fire), (bad, bad_fire) in pairwise(given):
            if mild_fire is None or bad_fire is None:
                continue
            if not _recovers(self.condition, bad_fire, mild_fire):
                raise ValueError(
                    f"thresholds.{bad}.fire ({_shown(bad_fire)}) is met before thresholds.{mild}."
                    f"fire ({_shown(mild_fire)}) for condition {self.condition!r}; exchange them"
                )


def _recovers(condition: str, fire: Number, recover: Number) -> bool:
    """Whether what does not meet ``recover`` does not meet ``fire`` either."""
    if isinstance(fire, tuple) and isinstance(recover, tuple):
        return fire[0] <= recover[0] and recover[1] <= fire[1]
    if condition in (">", ">="):
        return recover <= fire  # type: ignore[operator]
    if condition in ("<", "<="):
        return recover >= fire  # type: ignore[operator]
    return True


def _shown(value: Number) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[|")
