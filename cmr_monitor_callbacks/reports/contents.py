"""What a report says, as plain data: the JSON report, of which all others are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, HEALTH_COMPONENTS, METRICS, Kind
from cmr_monitor_callbacks.health import HealthStatus, reported_name
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.history.series import statistics_of
from cmr_monitor_callbacks.layers import layer_order
from cmr_monitor_callbacks.reports.bottleneck import find_bottleneck
from cmr_monitor_callbacks.reports.trends import trend_of

SCHEMA: Final = 1
"""Version of the report's form, see ``report.schema.json``."""
_POINTS: Final = 2000
_STATUS: Final = {float(status.code): status.value for status in HealthStatus}
_LOOKED: Final = ("step", "status", "findings", "not_available")
_FIXED: Final = ("avg_latency", "throughput", "error_rate")


def report_of(
    history: RunHistory,
    time_range: Range = None,
    *,
    now: float | None = None,
    diagnostics: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A report on a run.

    Args:
        history: of the run.
        time_range: the stretch that is told of, such as ``"1h"`` before the newest window.
        now: time at which it is made, seconds since the Unix epoch; None: the newest window's.
        diagnostics: what a look at the model gave, if somebody looked (`run_diagnostics`).

    Returns:
        ``timestamp``, ``system_health``, ``performance_metrics``, ``component_status``, and beside
        them ``schema``, ``run``, ``range``, ``health``, ``metrics``, ``layers``, ``ranks``,
        ``trends``, ``bottleneck``, ``alerts``, ``errors``, ``marks``, ``resources`` and
        ``diagnostics`` (None: nobody looked). All numbers are finite; None is no data. Counters are
        of the range, ratios and times the mean of its windows.

    Raises:
        HistoryError: no window is in the range, or the store cannot be read.
        ValueError: the range cannot be read.
    """
    report = history.consistent(lambda: _report(history, time_range, now))
    looked = None if diagnostics is None else {name: diagnostics[name] for name in _LOOKED}
    return {**report, "diagnostics": looked}


def _report(history: RunHistory, time_range: Range, now: float | None) -> dict[str, Any]:
    found = history.many(history.list_series("train"), time_range, max_points=_POINTS)
    series = {key: one for key, one in found.items() if len(one)}
    whole = {key.name: one for key, one in series.items() if key.layer is None and key.rank is None}
    longest = max(whole.values(), key=len, default=None)
    newest = history.last("train")
    bounds = history.bounds(time_range)
    made = now if now is not None else (newest[1] if newest else 0.0)
    components = {
        name: _health_of(whole, name) for name in HEALTH_COMPONENTS if f"{name}_status" in whole
    }
    metrics = {name: _metric(one) for name, one in whole.items() if name in _TOLD}
    means = {name: value["value"] for name, value in metrics.items() if value["value"] is not None}
    layers = _by_layer(series)
    return {
        "schema": SCHEMA,
        "timestamp": iso(made),
        "system_health": _status(whole.get("status")),
        "performance_metrics": {
            name: metrics[name]["value"] if name in metrics else None for name in _FIXED
        },
        "component_status": {
            reported_name(name): verdict["status"] for name, verdict in components.items()
        },
        "run": _run(history),
        "range": _range(longest),
        "health": {
            "score": _last(whole.get("score")),
            "components": components,
            "changes": [
                {**change, "time": iso(change["time"])} for change in history.health_changes(bounds)
            ],
        },
        "metrics": metrics,
        "layers": layers,
        "ranks": _by_rank(series),
        "trends": _trends(whole),
        "bottleneck": _finite(find_bottleneck(means, means, _steps(longest), _layer_times(series))),
        "alerts": _alerts(history, bounds),
        "errors": [
            {**error, "first_time": iso(error["first_time"]), "last_time": iso(error["last_time"])}
            for error in history.errors(bounds)
        ],
        "marks": [{**mark, "time": iso(mark["time"])} for mark in history.marks(bounds)],
        "resources": {},
    }


_TOLD: Final = {metric.name for metric in METRICS} | {
    "overhead_fraction",
    "overhead_seconds",
    "invalid_samples",
    "failures",
    "events",
    "straggler_ratio",
}


def iso(time: float) -> str:
    """Seconds since the Unix epoch as ISO 8601, in UTC.

    >>> iso(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    text = datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def value_over(series: Series) -> float:
    """A number of a whole stretch: what a counter added, a gauge's newest, else the windows' mean.

    A counter's first point adds nothing: what it stood at before the stretch is not known there.
    """
    kind = BY_NAME[series.key.name].kind
    if kind is Kind.COUNTER:
        return float(np.nansum(series.added[_from_start(series) :]))
    if kind in (Kind.GAUGE, Kind.SCORE):
        return _newest(series)
    return statistics_of(series).get("mean", math.nan)


def _from_start(series: Series) -> int:
    """1 where a stretch begins within the run, so that its first total is not its own."""
    return 0 if len(series) == 0 or series.step[0] <= _window_of(series) else 1


def _window_of(series: Series) -> float:
    return float(np.median(np.diff(series.step))) if len(series) > 1 else math.inf


def _newest(series: Series) -> float:
    given = ~np.isnan(series.last)
    return float(series.last[given][-1]) if given.any() else math.nan


def _metric(series: Series) -> dict[str, Any]:
    info = BY_NAME[series.key.name]
    counter = info.kind is Kind.COUNTER
    out: dict[str, Any] = {
        "value": value_over(series),
        "unit": info.unit,
        "component": info.component,
        "polarity": info.polarity.value,
        "over": "range" if counter else "mean of the windows",
    }
    if info.kind in (Kind.GAUGE, Kind.SCORE):
        out["over"] = "now"
    if not counter:
        known = statistics_of(series)
        out |= {name: known.get(name, math.nan) for name in ("min", "p50", "p95", "max", "last")}
    else:
        out["total"] = _newest(series)
    return _finite(out)


def _by_layer(series: Mapping[SeriesKey, Series]) -> dict[str, dict[str, float | None]]:
    layers: dict[Any, dict[str, float | None]] = {}
    for key, one in series.items():
        if key.layer is not None and key.rank is None:
            value = value_over(one)
            layers.setdefault(key.layer, {})[key.name] = value if math.isfinite(value) else None
    return {str(layer): layers[layer] for layer in sorted(layers, key=layer_order)}


def _by_rank(series: Mapping[SeriesKey, Series]) -> dict[str, dict[str, float]]:
    ranks: dict[int, dict[str, float]] = {}
    for key, one in series.items():
        if key.rank is not None and key.layer is None:
            mean = statistics_of(one).get("mean", math.nan)
            if math.isfinite(mean):
                ranks.setdefault(key.rank, {})[key.name] = mean
    return {str(rank): ranks[rank] for rank in sorted(ranks)}


def _layer_times(series: Mapping[SeriesKey, Series]) -> dict[str, dict[Any, float]]:
    out: dict[str, dict[Any, float]] = {}
    for key, one in series.items():
        if key.layer is not None and BY_NAME[key.name].unit == "s":
            out.setdefault(key.name, {})[key.layer] = statistics_of(one).get("mean", math.nan)
    return out


def _trends(whole: Mapping[str, Series]) -> list[dict[str, Any]]:
    out = []
    for name, series in whole.items():
        info = BY_NAME[name]
        if name not in _TOLD or info.kind in (Kind.COUNTER, Kind.SCORE):
            continue
        found = trend_of(series.value, info.polarity)
        if found.word not in ("steady", "unknown"):
            out.append({"metric": name, "trend": found.word, "change": found.change})
    order = {"worsening": 0, "improving": 1}
    return sorted(out, key=lambda t: (order.get(t["trend"], 2), -abs(t["change"])))


def _run(history: RunHistory) -> dict[str, Any]:
    sessions = history.sessions()
    if not sessions:
        return {}
    first, last = sessions[0], sessions[-1]
    newest = history.last("train")
    return {
        "folder": None if history.path is None else history.path.parent.name,
        "state": last["state"],
        "outcome": last["outcome"],
        "started": iso(first["started"]),
        "ended": None if last["ended"] is None else iso(last["ended"]),
        "last_window": None if newest is None else iso(newest[1]),
        "step": None if newest is None else newest[0],
        "sessions": len(sessions),
        "host": last["host"],
        "world_size": last["world_size"],
        "git_commit": last["git_commit"],
        "versions": last["versions"],
    }


def _range(longest: Series | None) -> dict[str, Any]:
    if longest is None or len(longest) == 0:
        return dict.fromkeys(("from", "to", "first_step", "last_step")) | {"windows": 0}
    return {
        "from": iso(float(longest.time[0])),
        "to": iso(float(longest.time[-1])),
        "first_step": int(longest.step[0]),
        "last_step": int(longest.step[-1]),
        "windows": int(longest.count.sum()),
    }


def _steps(longest: Series | None) -> float:
    """Steps of the stretch that counters are of."""
    if longest is None or len(longest) == 0:
        return 0.0
    if _from_start(longest):
        return float(longest.step[-1] - longest.step[0])
    return float(longest.step[-1] + 1)


def _alerts(history: RunHistory, time_range: Range) -> dict[str, Any]:
    transitions = history.alerts(time_range)
    fired: dict[str, int] = {}
    for row in transitions:
        if row["name"] == "firing":
            fired[row["rule"]] = fired.get(row["rule"], 0) + 1
    return {
        "firing": _rows(row for row in history.open_alerts() if row["after"] != "pending"),
        "pending": _rows(row for row in history.open_alerts() if row["after"] == "pending"),
        "fired": fired,
        "transitions": _rows(transitions),
    }


_ALERT: Final = (
    *("step", "time", "rule", "metric", "layer", "rank", "component", "name", "severity"),
    *("value", "threshold", "message"),
)


def _rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        _finite({name: row[name] for name in _ALERT} | {"time": iso(row["time"])}) for row in rows
    ]


def _health_of(whole: Mapping[str, Series], name: str) -> dict[str, Any]:
    return {"score": _last(whole.get(name)), "status": _status(whole.get(f"{name}_status"))}


def _status(series: Series | None) -> str:
    return "unknown" if series is None else _STATUS.get(_newest(series), "unknown")


def _last(series: Series | None) -> float | None:
    value = math.nan if series is None else _newest(series)
    return value if math.isfinite(value) else None


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


__all__: Sequence[str] = ["SCHEMA", "iso", "report_of", "value_over"]
