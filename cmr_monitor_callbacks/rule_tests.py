"""Tests of alert rules: series go in, the alerts that fire are compared with those expected.

The files have the form of promtool's (``promtool test rules``), so that the same series serve both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml
from pydantic import Field, field_validator, model_validator

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind, canonical
from cmr_monitor_callbacks.config import AlertConfig, load_preset, parse
from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.spans import PositiveDuration, Span, parse_span
from cmr_monitor_callbacks.errors import ConfigError, nearest
from cmr_monitor_callbacks.health import AlertEngine, AlertState, GivenNumbers, compile_rules
from cmr_monitor_callbacks.health.baseline import Baseline
from cmr_monitor_callbacks.health.notation import expand
from cmr_monitor_callbacks.layers import LayerId

_SERIES: Final = re.compile(r"\s*(custom/[\w.\-]+|\w+)\s*(?:\{(.*)\})?\s*")
_LABEL: Final = re.compile(r'\s*(\w+)\s*=\s*"([^"]*)"\s*')
_PLACES: Final = ("layer", "rank", "metric")
Place = tuple[str, LayerId | None, int | None]


class Series(Settings):
    """One series."""

    series: str
    """Metric, with the layer or rank it is of: ``storage_efficiency{layer="4"}``."""
    values: str
    """Its values, one for each ``interval``; see `expand`."""

    @field_validator("series")
    @classmethod
    def _readable(cls, text: str) -> str:
        place_of(text)
        return text

    @field_validator("values")
    @classmethod
    def _expandable(cls, text: str) -> str:
        expand(text)
        return text


class ExpectedAlert(Settings):
    """One alert that should be there."""

    exp_labels: dict[str, str] = Field(default_factory=dict)
    """Its labels; ``layer``, ``rank`` and ``metric`` that are not named must not be there."""
    exp_annotations: dict[str, str] = Field(default_factory=dict)
    """``summary``: the sentence; ``runbook``."""
    state: Literal["firing", "pending"] = "firing"
    """How it stands."""


class AlertTest(Settings):
    """What should hold at one time."""

    eval_time: Span
    """When: a time since the start, or so many steps or windows."""
    alertname: str
    """Name of the rule."""
    exp_alerts: tuple[ExpectedAlert, ...] = ()
    """All alerts of it that fire then, and those pending ones that are named."""


class SeriesTest(Settings):
    """One story."""

    name: str = ""
    """For messages."""
    interval: PositiveDuration | None = None
    """Time between two values; null: ``evaluation_interval``."""
    input_series: tuple[Series, ...]
    """The numbers."""
    baseline_series: tuple[Series, ...] = ()
    """The numbers of the recorded run that rules with ``vs: baseline`` compare with."""
    ranks: int = Field(default=1, ge=1)
    """Number of ranks."""
    alert_rule_test: tuple[AlertTest, ...]
    """What should come of them."""

    @model_validator(mode="after")
    def _one_value_each(self) -> SeriesTest:
        _check_places("input_series", self.input_series, self.ranks)
        _check_places("baseline_series", self.baseline_series, None)
        return self


def _check_places(name: str, series: Sequence[Series], ranks: int | None) -> None:
    seen: set[Place] = set()
    for i, one in enumerate(series):
        place = place_of(one.series)
        if place in seen:
            raise ValueError(f"{name}.{i}: {one.series} is given twice")
        if ranks is not None and place[2] is not None and place[2] >= ranks:
            raise ValueError(f"{name}.{i}: rank must be less than ranks ({ranks}), got {place[2]}")
        seen.add(place)


class RuleTestFile(Settings):
    """A file of tests."""

    rule_files: tuple[str, ...] = ()
    """YAML files with ``rules`` (or ``alerts: {rules: …}``), relative to this file."""
    preset: str | None = None
    """A shipped preset whose rules are tested."""
    evaluation_interval: PositiveDuration = 60.0
    """Time that a window takes."""
    window: int = Field(default=50, ge=1)
    """Steps in a window."""
    tests: tuple[SeriesTest, ...]
    """The tests."""

    @model_validator(mode="after")
    def _some_rules(self) -> RuleTestFile:
        if not self.rule_files and self.preset is None:
            raise ValueError("rule_files or preset must say which rules are tested")
        return self


@dataclass(frozen=True)
class Failure:
    """One expectation that was not met.

    Attributes:
        test: name or number of the test.
        alertname: the rule.
        when: the time, as it was written.
        expected: lines.
        got: lines.
    """

    test: str
    alertname: str
    when: str
    expected: tuple[str, ...]
    got: tuple[str, ...]


@dataclass
class Outcome:
    """What a file's tests gave.

    Attributes:
        expectations: number of them.
        failures: those not met.
    """

    expectations: int = 0
    failures: list[Failure] = field(default_factory=list)


def run_file(path: Path) -> Outcome:
    """Run the tests of a file.

    Raises:
        ConfigError: the file, or one of its rules, cannot be read; the message says where.
    """
    file = parse(RuleTestFile, _read(path), str(path))
    rules = _rules_of(file, path)
    outcome = Outcome()
    for number, test in enumerate(file.tests, start=1):
        _run(file, test, test.name or f"test {number}", rules, outcome)
    return outcome


def place_of(text: str) -> Place:
    """Metric, layer and rank of a series.

    Raises:
        ValueError: it cannot be read, or there is no such metric.

    >>> place_of('storage_efficiency{layer="4"}')
    ('storage_efficiency', 4, None)
    """
    found = _SERIES.fullmatch(text)
    if found is None:
        raise ValueError(f"must be like 'metric{{layer=\"4\"}}', got {text!r}")
    try:
        metric = canonical(found[1])
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    labels: dict[str, str] = {}
    for part in filter(str.strip, (found[2] or "").split(",")):
        label = _LABEL.fullmatch(part)
        if label is None or label[1] not in ("layer", "rank"):
            name = label[1] if label else part
            raise ValueError(f"{part.strip()!r}: {nearest(name, ('layer', 'rank'))}")
        labels[label[1]] = label[2]
    layer = labels.get("layer")
    rank = labels.get("rank")
    if rank is not None and not rank.isdecimal():
        raise ValueError(f"rank must be a whole number, got {rank!r}")
    named: LayerId | None = int(layer) if layer is not None and layer.isdecimal() else layer
    return metric, named, None if rank is None else int(rank)


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: no UTF-8, or a date or a number that is none
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _rules_of(file: RuleTestFile, path: Path) -> AlertConfig:
    rules: dict[str, Any] = {}
    if file.preset is not None:
        rules.update(load_preset(file.preset)["alerts"]["rules"])
    for name in file.rule_files:
        found = _read(path.parent / name)
        found = found.get("alerts", found) if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(found.get("rules"), dict):
            raise ConfigError(f"{path.parent / name} has no mapping 'rules'")
        rules.update(found["rules"])
    return parse(AlertConfig, {"rules": rules}, str(path))


def _run(
    file: RuleTestFile, test: SeriesTest, name: str, config: AlertConfig, outcome: Outcome
) -> None:
    rules = compile_rules(config)
    for one in test.alert_rule_test:
        if one.alertname not in config.rules:
            raise ConfigError(
                f"{name}: no rule is named {one.alertname!r}; "
                f"{nearest(one.alertname, config.rules)}"
            )
        compare = config.rules[one.alertname].compare
        if compare is not None and compare.vs == "baseline" and not test.baseline_series:
            raise ConfigError(
                f"{name}: {one.alertname} compares with a recorded run; baseline_series must have "
                "its numbers"
            )
    engine = AlertEngine(rules, _baseline(file, test))
    values = {place_of(one.series): expand(one.values) for one in test.input_series}
    layers = [layer for _, layer, _ in values if layer is not None]
    due = [(_window_of(one.eval_time, file), one) for one in test.alert_rule_test]
    interval = test.interval or file.evaluation_interval
    books = {rule.name: rule.runbook for rule in rules}
    for window in range(1 + max((window for window, _ in due), default=-1)):
        time = window * file.evaluation_interval
        at = math.floor(time / interval + 1e-9)
        now = {
            place: value
            for place, series in values.items()
            if at < len(series) and (value := series[at]) is not None
        }
        numbers = GivenNumbers(now, tuple(dict.fromkeys(layers)), test.ranks)
        step = (window + 1) * file.window - 1
        engine.evaluate(numbers, step=step, now=time, window=window + 1, steps=file.window)
        for then, one in due:
            if then == window:
                _compare(one, name, engine.open(), books, outcome)


def _baseline(file: RuleTestFile, test: SeriesTest) -> Baseline:
    """The recorded run that a test makes up, in windows as long as the test's."""
    interval = test.interval or file.evaluation_interval
    series, per_step = {}, set()
    for one in test.baseline_series:
        values = expand(one.values)
        ends = range(math.ceil(len(values) * interval / file.evaluation_interval))
        at = [math.floor(end * file.evaluation_interval / interval + 1e-9) for end in ends]
        given = [(end, values[n]) for end, n in zip(ends, at, strict=True) if n < len(values)]
        known = [(end, value) for end, value in given if value is not None]
        steps = np.array([(end + 1) * file.window - 1 for end, _ in known], dtype=np.int64)
        numbers = np.array([value for _, value in known], dtype=np.float64)
        metric, layer, rank = place_of(one.series)
        series[metric, layer, rank, "run"] = steps, numbers
        if BY_NAME[metric].kind is Kind.COUNTER:
            numbers = numbers / file.window
            per_step.add((metric, layer, rank, "window"))
        series[metric, layer, rank, "window"] = steps, numbers
    ranks = any(key[2] is not None for key in series)
    return Baseline(series, frozenset(per_step), ranks, "baseline_series")


def _window_of(when: str | float, file: RuleTestFile) -> int:
    """The window that has ended at a time, counted from 0."""
    amount, unit = parse_span(when)
    if unit == "seconds":
        return math.floor(amount / file.evaluation_interval + 1e-9)
    return max(0, int(amount if unit == "windows" else amount // file.window) - 1)


def _compare(
    test: AlertTest,
    name: str,
    states: Sequence[AlertState],
    books: Mapping[str, str],
    outcome: Outcome,
) -> None:
    outcome.expectations += 1
    waiting = list(test.exp_alerts)
    wants_pending = any(one.state == "pending" for one in waiting)
    got = [
        state
        for state in states
        if state.rule == test.alertname and (state.phase.fires or wants_pending)
    ]
    unmet = []
    for state in got:
        met = next((one for one in waiting if _meets(one, state, books)), None)
        if met is None:
            unmet.append(state)
        else:
            waiting.remove(met)
    if waiting or unmet:
        outcome.failures.append(
            Failure(
                name,
                test.alertname,
                str(test.eval_time),
                tuple(
                    _line(one.state, one.exp_labels, one.exp_annotations) for one in test.exp_alerts
                ),
                tuple(_line(_state(s), _labels(s), {"summary": s.message}) for s in got),
            )
        )


def _state(state: AlertState) -> str:
    return "firing" if state.phase.fires else "pending"


def _labels(state: AlertState) -> dict[str, str]:
    severity = "" if state.severity is None else state.severity.value
    return {"severity": severity, "component": state.component, **state.labels}


def _meets(expected: ExpectedAlert, state: AlertState, books: Mapping[str, str]) -> bool:
    labels = _labels(state)
    notes = {"summary": state.message, "runbook": books.get(state.rule, "")}
    return (
        expected.state == _state(state)
        and all(labels.get(name) == text for name, text in expected.exp_labels.items())
        and all(name in expected.exp_labels for name in _PLACES if name in labels)
        and all(notes.get(name) == text for name, text in expected.exp_annotations.items())
    )


def _line(state: str, labels: Mapping[str, str], notes: Mapping[str, str]) -> str:
    shown = ", ".join(f'{name}="{text}"' for name, text in labels.items())
    said = "; ".join(f"{name}: {text}" for name, text in notes.items())
    return f"{state} {{{shown}}} {said}".rstrip()
