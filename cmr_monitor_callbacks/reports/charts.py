"""The charts of the HTML report, as plotly.js takes them: plain data."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, HEALTH_COMPONENTS, Kind
from cmr_monitor_callbacks.health import reported_name
from cmr_monitor_callbacks.history import Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.reports.drawing import Array, Figure, cut, figure, heat_map, lines
from cmr_monitor_callbacks.reports.spans import AlertSpan
from cmr_monitor_callbacks.reports.stretch import layer_names
from cmr_monitor_callbacks.resources import RESOURCES

TRENDS: Final = (
    *("storage_efficiency", "utilization_rate", "retrieval_quality", "cache_hit_rate"),
    *("reconstruction_quality", "reconstruction_similarity", "error_rate", "throughput"),
    *("step_time", "avg_latency", "data_wait_share", "output_entropy"),
)
BY_LAYER: Final = (
    *("storage_efficiency", "utilization_rate", "eviction_count", "total_reconstructions"),
    *("avg_reconstruction_time", "retrieval_quality", "avg_retrieval_time", "turnover"),
)
TIMERS: Final = ("capture_time", "retrieval_time", "reconstruction_time", "step_time")
_STATUS: Final = ("unknown", "healthy", "warning", "critical")
_COLORS: Final = ("#a9b0bb", "#2e9e5b", "#e0a800", "#d64545")
_SEVERITY: Final = {"warning": "#e0a800", "error": "#e07b39", "critical": "#d64545", "": "#8b93a1"}
_MOST_ALERTS: Final = 40
Found = Mapping[SeriesKey, Series]


def health(series: Found) -> list[Figure]:
    """The status of each component over the run, and the score."""
    rows: list[tuple[str, Series]] = []
    for name in ("", *HEALTH_COMPONENTS):
        one = series.get(SeriesKey("train", f"{name}_status" if name else "status"))
        if one is not None and np.nanmax(one.last, initial=0.0) > 0:
            rows.append((reported_name(name) if name else "system", one))
    if not rows:
        return []
    drawn = heat_map(
        "status by component",
        rows,
        lambda one: one.maximum,  # a short stretch of trouble is not averaged away
        words=_STATUS,
        wide=True,
    )
    scale = [[(i + edge) / 4, color] for i, color in enumerate(_COLORS) for edge in (0, 1)]
    drawn["data"][0] |= {"colorscale": scale, "zmin": -0.5, "zmax": 3.5}
    drawn["data"][0] |= {"showscale": False, "ygap": 3}
    figures = [drawn]
    score = series.get(SeriesKey("train", "score"))
    if score is not None:
        figures.append(lines("score", [(None, score)], wide=True))
        figures[-1]["layout"]["yaxis"] |= {"range": [0, 105]}
    return figures


def alerts(spans: Sequence[AlertSpan], steps: tuple[int | None, int | None]) -> list[Figure]:
    """When each alert was firing, of many those that began last.

    Args:
        spans: stretches of firing.
        steps: the first and last of the report's range; None where it has no window.
    """
    newest = dict.fromkeys(span.label for span in reversed(spans))
    labels = list(newest)[:_MOST_ALERTS]
    if not labels:
        return []
    names = dict(zip(labels, cut(labels), strict=True))
    traces = []
    for severity, color in _SEVERITY.items():
        of = [span for span in spans if span.severity == severity and span.label in names]
        if of:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": severity or "no severity",
                    "y": [names[span.label] for span in of],
                    "base": [span.begin for span in of],
                    "x": [max(span.end - span.begin, 1) for span in of],
                    "marker": {"color": color},
                    "text": [_told(span) for span in of],
                    "textposition": "none",
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    drawn = figure("firing alerts", traces, height=120 + 24 * len(labels), wide=True)
    drawn["layout"] |= {"barmode": "overlay", "showlegend": True}
    if steps[0] is not None and steps[1] is not None and steps[0] < steps[1]:
        drawn["layout"]["xaxis"]["range"] = list(steps)
    drawn["layout"]["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [names[label] for label in labels],
        "dtick": 1,
    }
    return [drawn]


def _told(span: AlertSpan) -> str:
    end = "still" if span.open else f"to {span.end}"
    text = html.escape(" ".join(span.message.split())[:200], quote=False)
    return f"step {span.begin} {end}: {text}"


def trends(series: Found, marks: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The model as a whole, over the run, with the user's marks."""
    return [
        lines(name, [(None, series[SeriesKey("train", name)])], marks=marks)
        for name in TRENDS
        if SeriesKey("train", name) in series
    ]


def layers(series: Found) -> list[Figure]:
    """A heat map for each metric that tells layers apart: a row for each layer."""
    figures = []
    for name in BY_LAYER:
        rows = {
            key.layer: one
            for key, one in series.items()
            if key.name == name and key.layer is not None and key.rank is None
        }
        if not rows:
            continue
        names = layer_names(rows)
        counter = BY_NAME[name].kind is Kind.COUNTER
        figures.append(
            heat_map(
                f"{name} per step" if counter else name,
                [(f"layer {name}", rows[layer]) for layer, name in names.items()],
                _each_step if counter else _value,
                unit="" if counter else BY_NAME[name].unit,
            )
        )
    return figures


def _value(one: Series) -> Array:
    return one.value


def _each_step(one: Series) -> Array:
    """What a counter rose by in each step; of the first point it is not known how many it has."""
    steps = np.diff(one.step.astype(float), prepend=np.nan)
    added: Array = one.added / np.where(steps > 0, steps, np.nan)
    return added


def latency(series: Found) -> list[Figure]:
    """Quantiles of the time of a call, by part."""
    figures = []
    for timer in TIMERS:
        rows = [
            (q, series[SeriesKey("train", f"{timer}_{q}")])
            for q in ("p50", "p95", "p99")
            if SeriesKey("train", f"{timer}_{q}") in series
        ]
        if rows:
            figures.append(lines(timer, list(rows), unit="s"))
    return figures


def ranks(series: Found) -> list[Figure]:
    """The mean time of a step on each rank."""
    rows = [
        (f"rank {key.rank}", one)
        for key, one in series.items()
        if key.name == "step_time" and key.rank is not None
    ]
    return [heat_map("step_time by rank", rows, _value, unit="s", wide=True)] if rows else []


def resources(series: Found) -> list[Figure]:
    """What the machine was asked for, by resource."""
    by_name: dict[str, list[tuple[str | None, Series]]] = {}
    for key, one in series.items():
        if key.stage == RESOURCES:
            label = None if key.rank is None else f"rank {key.rank}"
            by_name.setdefault(key.name, []).append((label, one))
    return [lines(name, rows, by_time=True) for name, rows in by_name.items()]


def points_of(figures: Iterable[Figure]) -> int:
    """Numbers that are drawn: what makes a page heavy."""
    return sum(
        sum(len(row) for row in trace["z"]) if "z" in trace else len(trace["x"])
        for one in figures
        for trace in one["data"]
    )


__all__ = [
    "alerts",
    "health",
    "latency",
    "layers",
    "points_of",
    "ranks",
    "resources",
    "trends",
]
