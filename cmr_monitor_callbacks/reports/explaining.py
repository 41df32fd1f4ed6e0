"""Why a number has no data, and why a rule does not fire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmr_monitor_callbacks.catalogue import (
    BY_NAME,
    METRICS,
    OWN_METRICS,
    Kind,
    canonical,
    known_names,
)
from cmr_monitor_callbacks.config import RuleConfig, parse
from cmr_monitor_callbacks.errors import nearest
from cmr_monitor_callbacks.history import HistoryError, RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.series import label_of
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.reports.numbers import shown


@dataclass(frozen=True)
class Explanation:
    """What is known of a number or a rule.

    Attributes:
        name: of it.
        kind: ``metric`` or ``rule``.
        facts: what it is, by heading.
        series: for each series of it the newest value, as text.
        verdict: a sentence: why there is no data, or why it does not fire.
    """

    name: str
    kind: str
    facts: Mapping[str, str]
    series: Mapping[str, str] = field(default_factory=dict)
    verdict: str = ""


def explain(history: RunHistory, name: str) -> Explanation:
    """What a number of a run is, where it comes from and why it has no data; or the same of a rule.

    Args:
        history: of the run.
        name: any name of a metric, or a rule's.

    Raises:
        HistoryError: it is neither; the message names the nearest.
    """
    rules = history.config.get("alerts", {}).get("rules", {})
    if name in rules:
        return _rule(history, name, rules[name])
    if name not in known_names():
        known = [*rules, *known_names()]
        raise HistoryError(f"{name!r} is no rule and no number; {nearest(name, known)}")
    return _metric(history, canonical(name))


# -- numbers --------------------------------------------------------------------------------------


def _metric(history: RunHistory, name: str) -> Explanation:
    info = BY_NAME[name]
    sessions = history.sessions()
    sources: Mapping[str, str] = sessions[-1]["sources"] if sessions else {}
    source = sources.get(name) or sources.get(info.numerator) or sources.get(info.component)
    over = "the run so far" if info.kind is Kind.COUNTER else "each window"
    facts = {
        "meaning": info.help,
        "component": info.component,
        "kind": f"{info.kind.value}, over {over}",
        "unit": info.unit,
        "good": info.polarity.value,
        "source": source or "none",
    }
    if info.numerator and info.denominator:
        facts["formula"] = f"{info.numerator} / {info.denominator.replace('#', 'samples of ')}"
    keys = [key for key in history.list_series() if key.name == name]
    found = history.many(keys)
    series = {
        f"{key.stage}: {label_of(key)}" if key.stage != "train" else label_of(key): _newest(one)
        for key, one in found.items()
        if len(one)
    }
    newest = history.last()
    verdict = _why_empty(history, name, source) if not series else ""
    whole = found.get(SeriesKey("train", name))
    if whole is not None and len(whole) and newest is not None and math.isnan(whole.last[-1]):
        given = whole.step[~_nan(whole)]
        verdict = (
            f"It had data last at step {given[-1]}, and has none since then. "
            f"{_why_empty(history, name, source)}"
        )
    return Explanation(name, "metric", facts, series, verdict)


def _nan(series: Series) -> Any:
    return series.last != series.last


def _newest(series: Series) -> str:
    unit = BY_NAME[series.key.name].unit
    given = ~_nan(series)
    value, step = float(series.last[given][-1]), int(series.step[given][-1])
    return f"{shown(value, unit)} at step {step}"


def _why_empty(history: RunHistory, name: str, source: str | None) -> str:
    info = BY_NAME[name]
    monitoring = history.config.get("monitoring", {})
    sessions = history.sessions()
    if history.last() is None:
        return "No window of training has ended yet."
    if name in {own.name for own in OWN_METRICS}:
        if name.startswith("straggler"):
            return "It compares ranks, and is there with two or more of them."
        return "The monitor had nothing to say of it in this run."
    globs = monitoring.get("components", ["*"])
    if not any(matches(glob, info.component) for glob in globs):
        return (
            f"The component {info.component!r} is switched off: monitoring.components is {globs}."
        )
    if source is None:
        watches = sessions[-1]["watches"] if sessions else ""
        seen = f" What is watched:\n{watches}" if watches else ""
        return (
            f"Nothing in the model tells of {info.component}: hold a CMRProbe and call it, or see "
            f"docs/watching.md for what is recognised.{seen}"
        )
    upper = {m.numerator for m in METRICS if m.name == name}
    if info.denominator and not info.denominator.startswith("#"):
        below = _total(history, info.denominator)
        if below == 0:
            return f"It is a ratio, and {info.denominator} is 0: there was nothing to divide by."
        if below is None:
            return f"It is a ratio, and its source ({source}) does not tell {info.denominator}."
    return f"Its source ({source}) does not tell {', '.join(sorted(upper)) or name}."


def _total(history: RunHistory, statistic: str) -> float | None:
    """What a counter stands at; None where it is not kept or has no data."""
    if statistic not in BY_NAME:
        return None
    series = history.series(statistic)
    return float(series.last[~_nan(series)][-1]) if len(series) else None


# -- rules ----------------------------------------------------------------------------------------


def _rule(history: RunHistory, name: str, settings: Mapping[str, Any]) -> Explanation:
    rule = parse(RuleConfig, settings, name)
    thresholds = ", ".join(
        f"{severity} {rule.condition} {limit.fire}" for severity, limit in rule.thresholds.items()
    )
    facts = {
        "metric": rule.metric,
        "fires": thresholds if rule.compare is None else f"{thresholds} ({_beside(rule)})",
        "for": str(rule.for_),
        "when": rule.when or "always",
        "over": rule.over,
        "selects": _selects(rule),
        "runbook": rule.runbook or "none",
    }
    keys = [
        key
        for key in history.list_series("train")
        if matches(rule.metric, key.name) and _is_selected(rule, key)
    ]
    found = history.many(keys)
    series = {label_of(key): _judged(rule, one) for key, one in found.items() if len(one)}
    return Explanation(name, "rule", facts, series, _standing(history, name, rule, bool(series)))


def _beside(rule: RuleConfig) -> str:
    assert rule.compare is not None
    return f"as {rule.compare.as_} to {rule.compare.vs}"


def _selects(rule: RuleConfig) -> str:
    parts = [
        f"{what} {glob}"
        for what, glob in (("layer", rule.select.layer), ("rank", rule.select.rank))
        if glob is not None
    ]
    return ", ".join(parts) or "the model as a whole"


def _is_selected(rule: RuleConfig, key: SeriesKey) -> bool:
    for glob, value in ((rule.select.layer, key.layer), (rule.select.rank, key.rank)):
        if (glob is None) != (value is None):
            return False
        if glob is not None and not matches(str(glob), value):
            return False
    component = rule.select.component
    return component is None or matches(component, BY_NAME[key.name].component)


def _judged(rule: RuleConfig, series: Series) -> str:
    """The number that the rule looks at."""
    unit = BY_NAME[series.key.name].unit
    given = ~_nan(series)
    counter = BY_NAME[series.key.name].kind is Kind.COUNTER and rule.over == "window"
    values = series.added if counter else series.last
    return f"{shown(float(values[given][-1]), unit)} at step {int(series.step[given][-1])}"


def _standing(history: RunHistory, name: str, rule: RuleConfig, has_series: bool) -> str:
    alerts = history.config.get("alerts", {})
    if not alerts.get("enable_alerts", True):
        return "It is not judged: alerts.enable_alerts is false."
    if not rule.enabled:
        return "It is switched off: its enabled is false."
    states = [row for row in history.open_alerts() if row["rule"] == name]
    if states:
        lines = [
            f"{row['name']}{'' if row['severity'] is None else ' (' + row['severity'] + ')'} since "
            f"step {row['step']}: {row['message']}"
            for row in states
        ]
        return "It is open: " + "; ".join(lines) + "."
    if not has_series:
        if rule.select.rank is not None:
            return "It matches no number: it is about ranks, and the numbers of ranks are kept " + (
                "where there are several, up to history.ranks_up_to of them."
            )
        if rule.metric in known_names():
            why = _metric(history, canonical(rule.metric)).verdict
            return f"It matches no number of this run: {why or 'no layer is selected.'}"
        return "It matches no number of this run."
    fired = history.alerts(rule=name)
    text = "It does not fire: its condition does not hold"
    if rule.when:
        text += f", or not while {rule.when}"
    text += "."
    warmup = alerts.get("warmup", {})
    if rule.warmup and (warmup.get("steps") or warmup.get("until")):
        text += f" It is not judged while the run warms up ({warmup})."
    if fired:
        text += f" Last: {fired[-1]['name']} at step {fired[-1]['step']}, {fired[-1]['message']}."
    return text
