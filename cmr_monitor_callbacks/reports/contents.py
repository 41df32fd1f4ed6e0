"""What a report says, as plain data: the JSON report, of which all others are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cmr_monitor_callbacks.catalogue import BY_NAME, HEALTH_COMPONENTS, METRICS, Kind, is_custom
from cmr_monitor_callbacks.health import HealthStatus, reported_name
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.history.series import statistics_of
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.reports.bottleneck import find_bottleneck
from cmr_monitor_callbacks.reports.stretch import (
    Stretch,
    finite,
    iso,
    layer_names,
    metric,
    newest,
    read_stretch,
    value_over,
)
from cmr_monitor_callbacks.reports.trends import trend_of
from cmr_monitor_callbacks.resources import RESOURCES

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
        diagnostics: what a look at the model gave (`run_diagnostics`); None: what the run itself
            kept last in that stretch.

    Returns:
        ``timestamp``, ``system_health``, ``performance_metrics``, ``component_status``, and beside
        them ``schema``, ``run``, ``range``, ``health``, ``metrics``, ``layers``, ``ranks``,
        ``trends``, ``bottleneck``, ``alerts``, ``errors``, ``marks``, ``resources`` and
        ``diagnostics`` (None: nobody looked), as ``docs/reports.md`` says. All numbers are finite;
        None is no data. Counters are of the range, ratios and times the mean of its windows. Where
        the range has no window ``range`` says so, and nothing is known but what happened.

    Raises:
        HistoryError: the store cannot be read.
        ValueError: the range cannot be read.

    >>> from cmr_monitor_callbacks.config import HistoryConfig
    >>> from cmr_monitor_callbacks.history import HistoryStore, RunInfo
    >>> history = RunHistory(HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0))
    >>> report_of(history)["component_status"]["memory_buffer"]
    'unknown'
    """
    report = history.consistent(lambda: _report(history, time_range, now))
    return report if diagnostics is None else {**report, "diagnostics": _looked(diagnostics)}


def _report(history: RunHistory, time_range: Range, now: float | None) -> dict[str, Any]:
    bounds = history.bounds(time_range)
    stretch = read_stretch(history, bounds, max_points=_POINTS)
    whole = stretch.whole
    metrics = {name: metric(one, stretch) for name, one in whole.items() if _is_told(name)}
    means = {name: value["value"] for name, value in metrics.items() if value["value"] is not None}
    ranks = _by_rank(stretch)
    run = _run(history)
    return {
        "schema": SCHEMA,
        "timestamp": iso(_made(history) if now is None else now, "seconds"),
        "system_health": _status(whole.get("status")),
        "performance_metrics": {
            name: metrics[name]["value"] if name in metrics else None for name in _FIXED
        },
        "component_status": {
            reported_name(name): _status(whole.get(f"{name}_status")) for name in HEALTH_COMPONENTS
        },
        "run": run,
        "range": stretch.told(),
        "health": _health(history, bounds, whole),
        "metrics": metrics,
        "layers": _by_layer(stretch),
        "ranks": ranks,
        "trends": _trends(whole),
        "bottleneck": _bottleneck(stretch, means, ranks, run.get("world_size", 1)),
        "alerts": _alerts(history, bounds),
        "errors": [_error(error) for error in history.errors(bounds)],
        "marks": [{**mark, "time": iso(mark["time"])} for mark in history.marks(bounds)],
        "resources": _resources(history, bounds),
        "diagnostics": next(map(_looked, history.diagnostics(bounds)[-1:]), None),
    }


def _looked(diagnostics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: diagnostics[name] for name in _LOOKED}


_TOLD: Final = {metric.name for metric in METRICS} | {
    "overhead_fraction",
    "overhead_seconds",
    "invalid_samples",
    "failures",
    "dropped_events",
    "events",
    "straggler_ratio",
}


def _is_told(name: str) -> bool:
    return name in _TOLD or is_custom(name)


def _made(history: RunHistory) -> float:
    """When the newest window ended; before the first, when the run began."""
    newest = history.last("train")
    sessions = history.sessions()
    return newest[1] if newest else sessions[-1]["started"] if sessions else 0.0


def _by_layer(stretch: Stretch) -> dict[str, dict[str, float | None]]:
    layers: dict[LayerId, dict[str, float | None]] = {}
    for key, one in stretch.series.items():
        if key.layer is not None and key.rank is None:
            value = value_over(one, stretch.from_start)
            layers.setdefault(key.layer, {})[key.name] = value if math.isfinite(value) else None
    return {name: layers[layer] for layer, name in layer_names(layers).items()}


def _by_rank(stretch: Stretch) -> dict[str, dict[str, float]]:
    ranks: dict[int, dict[str, float]] = {}
    for key, one in stretch.series.items():
        if key.rank is not None and key.layer is None:
            mean = statistics_of(one).get("mean", math.nan)
            if math.isfinite(mean):
                ranks.setdefault(key.rank, {})[key.name] = mean
    return {str(rank): ranks[rank] for rank in sorted(ranks)}


def _bottleneck(
    stretch: Stretch,
    means: Mapping[str, float],
    ranks: Mapping[str, Mapping[str, float]],
    world_size: int,
) -> dict[str, Any]:
    layers: dict[str, dict[LayerId, float]] = {}
    for key, one in stretch.series.items():
        if key.layer is not None and key.rank is None and BY_NAME[key.name].unit == "s":
            layers.setdefault(key.name, {})[key.layer] = statistics_of(one).get("mean", math.nan)
    behind = {
        int(rank): values["straggler_ratio"]
        for rank, values in ranks.items()
        if "straggler_ratio" in values
    }
    return finite(
        find_bottleneck(
            means, means, stretch.steps, layers, stragglers=behind, world_size=world_size
        )
    )


def _trends(whole: Mapping[str, Series]) -> list[dict[str, Any]]:
    out = []
    for name, series in whole.items():
        info = BY_NAME[name]
        if not _is_told(name) or info.kind in (Kind.COUNTER, Kind.SCORE):
            continue
        found = trend_of(series.value, info.polarity, series.step)
        if found.word not in ("steady", "unknown"):
            out.append({"metric": name, "trend": found.word, "change": found.change})
    order = {"worsening": 0, "improving": 1}
    return sorted(out, key=lambda t: (order.get(t["trend"], 2), -abs(t["change"])))


def _resources(history: RunHistory, bounds: Range) -> dict[str, Any]:
    """What was sampled of rank 0's machine, by name."""
    found = history.many(history.list_series(RESOURCES), bounds, max_points=_POINTS)
    out = {}
    for key, series in found.items():
        known = statistics_of(series)
        if known["count"]:
            numbers = {name: known[name] for name in ("mean", "min", "p50", "p95", "max", "last")}
            about = {"samples": int(known["count"]), "unit": BY_NAME[key.name].unit}
            out[key.name] = finite(numbers) | about
    return out


def _run(history: RunHistory) -> dict[str, Any]:
    sessions = history.sessions()
    if not sessions:
        return {}
    first, last = sessions[0], sessions[-1]
    last_window = history.last("train")
    return {
        "folder": None if history.path is None else history.path.resolve().parent.name,
        "state": last["state"],
        "outcome": last["outcome"],
        "started": iso(first["started"]),
        "ended": None if last["ended"] is None else iso(last["ended"]),
        "last_window": None if last_window is None else iso(last_window[1]),
        "step": None if last_window is None else last_window[0],
        "sessions": len(sessions),
        "host": last["host"],
        "world_size": last["world_size"],
        "git_commit": last["git_commit"],
        "versions": last["versions"],
    }


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


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    times = {name: iso(error[name]) for name in ("first_time", "last_time")}
    return {**error, **times, "over_time": [list(pair) for pair in error["over_time"]]}


def _rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        finite({name: row[name] for name in _ALERT} | {"time": iso(row["time"])}) for row in rows
    ]


def _health(
    history: RunHistory, bounds: tuple[float, float], whole: Mapping[str, Series]
) -> dict[str, Any]:
    return {
        "score": _last(whole.get("score")),
        "components": {
            name: {"score": _last(whole.get(name)), "status": _status(whole[f"{name}_status"])}
            for name in HEALTH_COMPONENTS
            if f"{name}_status" in whole
        },
        "changes": [
            {**change, "time": iso(change["time"])} for change in history.health_changes(bounds)
        ],
    }


def _status(series: Series | None) -> str:
    return "unknown" if series is None else _STATUS.get(newest(series), "unknown")


def _last(series: Series | None) -> float | None:
    value = math.nan if series is None else newest(series)
    return value if math.isfinite(value) else None


__all__: Sequence[str] = ["SCHEMA", "report_of"]
