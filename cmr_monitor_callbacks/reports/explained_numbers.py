"""Why a number has the value that it has, or no data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, METRICS, OWN_METRICS, Kind, is_custom
from cmr_monitor_callbacks.errors import closest
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.series import label_of
from cmr_monitor_callbacks.layers import layer_tag, matches
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


def explain_number(history: RunHistory, name: str, part: str = "") -> Explanation:
    """What a number is.

    Args:
        history: of the run.
        name: the metric's canonical name.
        part: one layer or rank alone, as tags have it; '': all.

    Raises:
        HistoryError: the store cannot be read.
    """
    info = BY_NAME[name]
    sessions = history.sessions()
    sources: Mapping[str, str] = sessions[-1]["sources"] if sessions else {}
    told = "track_metric" if is_custom(name) else None
    source = told or sources.get(name) or sources.get(info.numerator) or sources.get(info.component)
    over = "the run so far" if info.kind is Kind.COUNTER else "each window"
    facts = {
        "meaning": info.help,
        "component": info.component,
        "kind": f"{info.kind.value}, over {over}",
        "unit": info.unit or "none",
        "good": info.polarity.value,
        "source": source or "none",
    }
    if info.numerator and info.denominator:
        facts["formula"] = f"{info.numerator} / {info.denominator.replace('#', 'samples of ')}"
    asked = f"{name}/{part}" if part else ""
    keys = [
        key
        for key in history.list_series()
        if key.name == name and (not part or label_of(key) == asked)
    ]
    found = history.many(keys)
    series = {
        f"{key.stage}: {label_of(key)}" if key.stage != "train" else label_of(key): _newest(one)
        for key, one in found.items()
        if len(one)
    }
    newest = history.last()
    verdict = ""
    if not series:
        verdict = (part and _why_no_part(history, name, part)) or _why_empty(history, name, source)
    whole = found.get(SeriesKey("train", name)) if not part else next(iter(found.values()), None)
    if whole is not None and len(whole) and newest is not None and math.isnan(whole.last[-1]):
        given = whole.step[~without_data(whole)]
        verdict = (
            f"It had data last at step {given[-1]}, and has none since then. "
            f"{_why_empty(history, name, source)}"
        )
    return Explanation(asked or name, "metric", facts, series, verdict)


def _why_no_part(history: RunHistory, name: str, part: str) -> str:
    """Why one layer or rank has no data; '' where no other has any either."""
    others = [label_of(key) for key in history.list_series("train") if key.name == name]
    others = [label.partition("/")[2] for label in others if "/" in label]
    if others:
        return f"{part} has no data of it{closest(part, others)} There is: {', '.join(others)}."
    layers = ", ".join(layer_tag(layer) for layer in history.layers()) or "none"
    if part not in layers.split(", ") and part.startswith("layer_"):
        return f"The run has no {part}; its layers: {layers}."
    return ""


def without_data(series: Series) -> NDArray[np.bool_]:
    """Points that have no data, shape ``(points,)``."""
    return np.isnan(series.last)


def _newest(series: Series) -> str:
    unit = BY_NAME[series.key.name].unit
    given = ~without_data(series)
    value, step = float(series.last[given][-1]), int(series.step[given][-1])
    return f"{shown(value, unit)} at step {step}"


def _why_empty(history: RunHistory, name: str, source: str | None) -> str:
    info = BY_NAME[name]
    if is_custom(name):
        return "A window in which it is not tracked has none."
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
    return float(series.last[~without_data(series)][-1]) if len(series) else None
