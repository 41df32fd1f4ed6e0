"""Why a rule fires, or does not."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind, canonical, known_names
from cmr_monitor_callbacks.config import RuleConfig, parse
from cmr_monitor_callbacks.config.rules import SEVERITIES
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.series import label_of
from cmr_monitor_callbacks.layers import matches
from cmr_monitor_callbacks.reports.explained_numbers import (
    Explanation,
    explain_number,
    without_data,
)
from cmr_monitor_callbacks.reports.numbers import shown


def explain_rule(history: RunHistory, name: str, settings: Mapping[str, Any]) -> Explanation:
    """What a rule of the run's settings looks at, and why it is silent.

    Args:
        history: of the run.
        name: of the rule.
        settings: the rule as plain data.

    Raises:
        HistoryError: the store cannot be read.
    """
    rule = parse(RuleConfig, settings, name)
    thresholds = ", ".join(
        f"{severity} where {_condition(rule, limit.fire)}"
        for severity, limit in rule.thresholds.items()
    )
    facts = {
        "metric": rule.metric,
        "fires": f"{thresholds}{_beside(history, rule)}",
        "for": _span(rule.for_),
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
    found = {key: one for key, one in history.many(keys).items() if len(one)}
    series = {label_of(key): _judged(rule, one) for key, one in found.items()}
    return Explanation(name, "rule", facts, series, _standing(history, name, rule, found))


def explain_rule_from_code(history: RunHistory, name: str) -> Explanation:
    """What became of a rule that the settings do not have: it was made by `set_alert`."""
    alerts = history.alerts(rule=name)
    facts = {"metric": alerts[-1]["metric"], "fires": "as the code says that made it"}
    verdict = _open(history, name, "") or f"It is not open.{_last(alerts)}"
    return Explanation(name, "rule", facts, {}, verdict)


def _condition(rule: RuleConfig, fire: object) -> str:
    return rule.condition if fire is None else f"{rule.condition} {fire}"


def _span(length: str | float) -> str:
    if isinstance(length, str):
        return length
    return f"{length:g} s" if length else "at once"


def _beside(history: RunHistory, rule: RuleConfig) -> str:
    """What the condition judges instead of the value; '' for the value itself."""
    parts = []
    if rule.compare is not None:
        parts.append(f"as {rule.compare.as_} to {rule.compare.vs}")
        if rule.compare.vs == "baseline":
            parts[0] += f" {history.config.get('alerts', {}).get('baseline') or '(none is named)'}"
    if rule.detector is not None:
        channels = ", ".join(rule.detector.channels)
        parts.append(
            f"the score of the detector {rule.detector.name} for {channels}, after "
            f"{rule.detector.min_windows} windows with data"
        )
    return f" ({'; '.join(parts)})" if parts else ""


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


def _values(rule: RuleConfig, series: Series) -> NDArray[np.float64]:
    """The numbers that the rule looks at, shape ``(points,)``."""
    counter = BY_NAME[series.key.name].kind is Kind.COUNTER and rule.over == "window"
    return series.added if counter else series.last


def _judged(rule: RuleConfig, series: Series) -> str:
    given = ~without_data(series)
    value = shown(float(_values(rule, series)[given][-1]), BY_NAME[series.key.name].unit)
    return f"{value} at step {int(series.step[given][-1])}"


def _standing(
    history: RunHistory, name: str, rule: RuleConfig, found: Mapping[SeriesKey, Series]
) -> str:
    alerts = history.config.get("alerts", {})
    if not alerts.get("enable_alerts", True):
        return "It is not judged: alerts.enable_alerts is false."
    if not rule.enabled:
        return "It is switched off: its enabled is false."
    opened = _open(history, name, _span(rule.for_))
    if opened:
        return opened
    if not found:
        return _nothing_matched(history, rule)
    parts = [_silent(rule, found)]
    warmup = alerts.get("warmup", {})
    if rule.warmup and (warmup.get("steps") or warmup.get("until")):
        given = ", ".join(f"{key} {value}" for key, value in warmup.items() if value)
        parts.append(f" It is not judged while the run warms up ({given}).")
    return "".join(parts) + _last(history.alerts(rule=name))


def _open(history: RunHistory, name: str, hold: str) -> str:
    """What is said of alerts that are open; '' without any."""
    lines = []
    for row in (row for row in history.open_alerts() if row["rule"] == name):
        severity = "" if row["severity"] is None else f" ({row['severity']})"
        line = f"{row['after']}{severity} since step {row['step']}: {row['message']}"
        if row["after"] == "pending" and hold:
            line += f" (it fires when its condition has held for {hold})"
        lines.append(line)
    sessions = history.sessions()
    state = sessions[-1]["state"] if sessions else "unknown"
    was = f"It was open when the run {state}" if state in ("ended", "died") else "It is open"
    return f"{was}: {'; '.join(lines)}." if lines else ""


def _last(alerts: Sequence[Mapping[str, Any]]) -> str:
    if not alerts:
        return " It has never been open."
    newest = alerts[-1]
    return f" Last: {newest['name']} at step {newest['step']}: {newest['message']}."


def _nothing_matched(history: RunHistory, rule: RuleConfig) -> str:
    if rule.select.rank is not None:
        return (
            "It matches no number: it is about ranks, and the numbers of ranks are kept where "
            "there are several, up to history.ranks_up_to of them."
        )
    if rule.metric in known_names():
        why = explain_number(history, canonical(rule.metric)).verdict
        return f"It matches no number of this run: {why or 'no layer is selected.'}"
    return "It matches no number of this run."


def _silent(rule: RuleConfig, found: Mapping[SeriesKey, Series]) -> str:
    """Why nothing is open: no data now, or the number that is nearest to the threshold."""
    newest = {key: float(_values(rule, one)[-1]) for key, one in found.items()}
    given = {key: value for key, value in newest.items() if not math.isnan(value)}
    if not given:
        kept = "stays as it was" if rule.no_data.mode == "keep" else f"is {rule.no_data.mode}"
        return f"It does not fire: the newest window has no data, and without data it {kept}."
    text = "It does not fire: its condition does not hold"
    judges_the_value = rule.compare is None and rule.detector is None
    if rule.condition in _ORDERED and judges_the_value and not _is_reduced(rule):
        pick = max if rule.condition in (">", ">=") else min
        key, value = pick(given.items(), key=lambda item: item[1])
        fires = _mildest(rule)
        text += f": {label_of(key)} is {value:.4g}, which is not {rule.condition} {fires:g}"
        if _ORDERED[rule.condition](value, fires):
            text = (
                f"It does not fire, though {label_of(key)} is {value:.4g} ({rule.condition} "
                f"{fires:g}): it has not held for long enough ({_span(rule.for_)}"
                f"{'' if rule.m_of_n is None else f', m_of_n {list(rule.m_of_n)}'}), or the rule "
                "was not judged in the newest window"
            )
    learning = rule.detector is not None and _most(found) <= rule.detector.min_windows
    if rule.detector is not None and learning:
        text = (
            f"It does not fire: its detector has learned from {_most(found)} windows with "
            f"data at most, and says nothing until {rule.detector.min_windows} are over"
        )
    return text + (f"; and it fires only while {rule.when}." if rule.when else ".")


def _most(found: Mapping[SeriesKey, Series]) -> int:
    """Most windows with data that any of the rule's series has."""
    return max((int(np.nansum(one.count)) for one in found.values()), default=0)


_ORDERED: Final = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def _mildest(rule: RuleConfig) -> float:
    """What the mildest severity fires at; of an inequality it is one number."""
    fire = rule.thresholds[min(rule.thresholds, key=SEVERITIES.index)].fire
    assert isinstance(fire, int | float)
    return fire


def _is_reduced(rule: RuleConfig) -> bool:
    return (rule.reduce.layer, rule.reduce.rank) != ("none", "none")
