"""A report as one HTML file that needs nothing else: charts of a run over time."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, HEALTH_COMPONENTS, Kind
from cmr_monitor_callbacks.health import reported_name
from cmr_monitor_callbacks.history import HistoryError, RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.reports.contents import iso, report_of
from cmr_monitor_callbacks.reports.numbers import shown
from cmr_monitor_callbacks.reports.spans import alert_spans
from cmr_monitor_callbacks.resources import RESOURCES

_POINTS: Final = 600
_TRENDS: Final = (
    *("storage_efficiency", "utilization_rate", "retrieval_quality", "cache_hit_rate"),
    *("reconstruction_quality", "reconstruction_similarity", "error_rate", "throughput"),
    *("step_time", "avg_latency", "data_wait_share", "output_entropy"),
)
_BY_LAYER: Final = (
    *("storage_efficiency", "utilization_rate", "eviction_count", "total_reconstructions"),
    *("avg_reconstruction_time", "retrieval_quality", "avg_retrieval_time", "turnover"),
)
_TIMERS: Final = ("capture_time", "retrieval_time", "reconstruction_time", "step_time")
_COLORS: Final = {"healthy": "#2e9e5b", "warning": "#e0a800", "critical": "#d64545"}
_SEVERITY: Final = {"warning": "#e0a800", "error": "#e07b39", "critical": "#d64545"}
_LINES: Final = ("#3b6fb6", "#e07b39", "#2e9e5b", "#8e5bb5", "#b0413e", "#4c9fb0")
Figure = dict[str, Any]


def to_html(history: RunHistory, time_range: Range = None) -> str:
    """A page with charts of a run's history; it holds all that it needs, scripts included.

    Args:
        history: of the run.
        time_range: the stretch that is shown, see `RunHistory.series`.

    Raises:
        HistoryError: plotly is not installed, or the store cannot be read.
    """
    try:
        import plotly.io
        import plotly.offline
    except ImportError:
        text = "the HTML report needs plotly: pip install 'cmr-monitor-callbacks[dashboard]'"
        raise HistoryError(text) from None
    report, sections = history.consistent(
        lambda: (report_of(history, time_range), _sections(history, time_range))
    )
    body = [_head(report)]
    number = 0
    for title, note, figures in sections:
        if not figures:
            continue
        body.append(
            f"<section><h2>{html.escape(title)}</h2><p class='note'>{html.escape(note)}</p>"
        )
        body.append("<div class='grid'>")
        for figure in figures:
            number += 1
            drawn = plotly.io.to_html(
                figure,
                full_html=False,
                include_plotlyjs=False,
                div_id=f"chart-{number}",
                config={"displayModeBar": False, "responsive": True},
            )
            wide = " wide" if figure["layout"].get("meta") == "wide" else ""
            body.append(f"<figure class='chart{wide}'>{drawn}</figure>")
        body.append("</div></section>")
    body += [_alert_table(report), _error_table(report), _foot(report)]
    name = html.escape(str(report["run"].get("folder") or "run"))
    return _PAGE.format(title=name, script=plotly.offline.get_plotlyjs(), body="\n".join(body))


Section = tuple[str, str, list[Figure]]


def _sections(history: RunHistory, time_range: Range) -> list[Section]:
    keys = [*history.list_series("train"), *history.list_series(RESOURCES)]
    found = history.many(keys, time_range, max_points=_POINTS)
    series = {key: one for key, one in found.items() if len(one)}
    marks = history.marks(time_range)
    return [
        ("Health", "Status of each component over the run.", _health(series)),
        ("Alerts", "When each alert was firing.", _alert_figure(history, time_range)),
        (
            "Trends",
            "The model as a whole; bands are the least and greatest window where several are drawn "
            "as one point.",
            [
                _lines(name, [(None, series[SeriesKey("train", name)])], marks)
                for name in _TRENDS
                if SeriesKey("train", name) in series
            ],
        ),
        ("Layers", "Which layer earns its memory. Counters are per window.", _layers(series)),
        ("Latency", "Quantiles of the time of a call.", _latency(series)),
        ("Ranks", "Mean time of a step on each rank.", _ranks(series)),
        ("Resources", "Of rank 0's machine, sample by sample.", _resources(series)),
    ]


def _health(series: Mapping[SeriesKey, Series]) -> list[Figure]:
    rows: list[tuple[str, Series]] = []
    for name in ("", *HEALTH_COMPONENTS):
        one = series.get(SeriesKey("train", f"{name}_status" if name else "status"))
        if one is not None and np.nanmax(one.last, initial=0.0) > 0:
            rows.append((reported_name(name) if name else "system", one))
    if not rows:
        return []
    steps = rows[0][1].step.tolist()
    scale = ["#c9ced6", *_COLORS.values()]
    colors = [[i / 4 + edge / 4, color] for i, color in enumerate(scale) for edge in (0, 1)]
    heat = {
        "type": "heatmap",
        "x": steps,
        "y": [name for name, _ in rows][::-1],
        "z": [_plain(one.last) for _, one in rows][::-1],
        "colorscale": colors,
        "zmin": -0.5,
        "zmax": 3.5,
        "showscale": False,
        "ygap": 3,
        "text": [[_word(v) for v in one.last.tolist()] for _, one in rows][::-1],
        "hovertemplate": "%{y}, step %{x}: %{text}<extra></extra>",
    }
    figure = _figure("status by component", [heat], height=90 + 26 * len(rows), wide=True)
    figures = [figure]
    score = series.get(SeriesKey("train", "score"))
    if score is not None:
        figures.append(_lines("score", [(None, score)], []))
        figures[-1]["layout"]["yaxis"] |= {"range": [0, 105]}
        figures[-1]["layout"]["meta"] = "wide"
    return figures


def _word(code: float) -> str:
    words = ("unknown", "healthy", "warning", "critical")
    return words[int(code)] if code == code else "unknown"


def _alert_figure(history: RunHistory, time_range: Range) -> list[Figure]:
    newest = history.last("train")
    spans = alert_spans(history.alerts(time_range), end=newest[0] if newest else 0)
    if not spans:
        return []
    labels = list(dict.fromkeys(span.label for span in spans))
    traces = []
    for severity, color in _SEVERITY.items():
        of = [span for span in spans if span.severity == severity]
        if of:
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": severity,
                    "y": [html.escape(span.label) for span in of],
                    "base": [span.begin for span in of],
                    "x": [max(span.end - span.begin, 1) for span in of],
                    "marker": {"color": color},
                    "text": [html.escape(span.message) for span in of],
                    "textposition": "none",
                    "hovertemplate": "step %{base}: %{text}<extra></extra>",
                }
            )
    figure = _figure("firing alerts", traces, height=110 + 24 * len(labels), wide=True)
    order = [html.escape(label) for label in labels][::-1]
    figure["layout"] |= {"barmode": "overlay", "showlegend": True}
    figure["layout"]["yaxis"] |= {"categoryorder": "array", "categoryarray": order}
    return [figure]


def _layers(series: Mapping[SeriesKey, Series]) -> list[Figure]:
    figures = []
    for name in _BY_LAYER:
        rows = [
            (key.layer, one)
            for key, one in series.items()
            if key.name == name and key.layer is not None and key.rank is None
        ]
        if not rows:
            continue
        counter = BY_NAME[name].kind is Kind.COUNTER
        values = [one.added if counter else one.value for _, one in rows][::-1]
        factor, unit = _scale(name)
        heat = {
            "type": "heatmap",
            "x": rows[0][1].step.tolist(),
            "y": [f"layer {html.escape(str(layer))}" for layer, _ in rows][::-1],
            "z": [_plain(v * factor) for v in values],
            "colorscale": "Viridis",
            "colorbar": {"thickness": 10, "title": {"text": unit}},
            "hovertemplate": "%{y}, step %{x}: %{z:.4g} " + unit + "<extra></extra>",
        }
        title = f"{name} per window" if counter else name
        figures.append(_figure(title, [heat], height=110 + 22 * len(rows)))
    return figures


def _latency(series: Mapping[SeriesKey, Series]) -> list[Figure]:
    figures = []
    for timer in _TIMERS:
        rows = [
            (q, series[SeriesKey("train", f"{timer}_{q}")])
            for q in ("p50", "p95", "p99")
            if SeriesKey("train", f"{timer}_{q}") in series
        ]
        if rows:
            figures.append(_lines(timer, list(rows), [], metric=f"{timer}_p50"))
    return figures


def _ranks(series: Mapping[SeriesKey, Series]) -> list[Figure]:
    rows = [
        (key.rank, one)
        for key, one in series.items()
        if key.name == "step_time" and key.rank is not None
    ]
    if not rows:
        return []
    heat = {
        "type": "heatmap",
        "x": rows[0][1].step.tolist(),
        "y": [f"rank {rank}" for rank, _ in rows][::-1],
        "z": [_plain(one.value * 1e3) for _, one in rows][::-1],
        "colorscale": "Viridis",
        "colorbar": {"thickness": 10, "title": {"text": "ms"}},
        "hovertemplate": "%{y}, step %{x}: %{z:.4g} ms<extra></extra>",
    }
    return [_figure("step_time by rank", [heat], height=110 + 18 * len(rows), wide=True)]


def _resources(series: Mapping[SeriesKey, Series]) -> list[Figure]:
    names = dict.fromkeys(key.name for key in series if key.stage == RESOURCES)
    return [
        _lines(
            name,
            [
                (None if key.rank is None else f"rank {key.rank}", one)
                for key, one in series.items()
                if key.stage == RESOURCES and key.name == name
            ],
            [],
            by_time=True,
        )
        for name in names
    ]


def _lines(
    title: str,
    rows: Sequence[tuple[str | None, Series]],
    marks: Iterable[Mapping[str, Any]],
    *,
    metric: str | None = None,
    by_time: bool = False,
) -> Figure:
    factor, unit = _scale(metric or title)
    traces: list[dict[str, Any]] = []
    for i, (label, one) in enumerate(rows):
        color = _LINES[i % len(_LINES)]
        # several samples may belong to one step
        steps = [iso(t) for t in one.time.tolist()] if by_time else one.step.tolist()
        if one.count.max(initial=0.0) > 1:
            band = _plain(one.maximum * factor), _plain(one.minimum * factor)
            for values, fill in zip(band, (None, "tonexty"), strict=True):
                traces.append(
                    {
                        "type": "scatter",
                        "x": steps,
                        "y": values,
                        "line": {"width": 0},
                        "fill": fill,
                        "fillcolor": "rgba(59,111,182,0.18)",
                        "hoverinfo": "skip",
                        "showlegend": False,
                    }
                )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": steps,
                "y": _plain(one.value * factor),
                "name": html.escape(label or title),
                "line": {"color": color, "width": 1.8},
                "hovertemplate": ("" if by_time else "step ")
                + "%{x}: %{y:.4g} "
                + unit
                + "<extra></extra>",
            }
        )
    figure = _figure(title, traces)
    if by_time:
        figure["layout"]["xaxis"]["title"]["text"] = "time (UTC)"
    figure["layout"]["yaxis"] |= {"title": {"text": unit}, "rangemode": "tozero"}
    figure["layout"]["showlegend"] = len(rows) > 1
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": mark["step"],
            "x1": mark["step"],
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"dash": "dot", "width": 1, "color": "#888"},
            "label": {"text": html.escape(mark["label"])[:40], "font": {"size": 9}},
        }
        for mark in marks
    ]
    return figure


def _figure(
    title: str, traces: Sequence[Mapping[str, Any]], *, height: int = 230, wide: bool = False
) -> Figure:
    return {
        "data": list(traces),
        "layout": {
            "title": {"text": html.escape(title), "font": {"size": 14}, "x": 0.01},
            "height": height,
            "margin": {"l": 10, "r": 10, "t": 36, "b": 30},
            "xaxis": {"title": {"text": "step", "standoff": 2}, "automargin": True},
            "yaxis": {"automargin": True},
            "template": "plotly_white",
            "font": {"family": "system-ui, sans-serif", "size": 11},
            "meta": "wide" if wide else "",
        },
    }


def _scale(name: str) -> tuple[float, str]:
    """What to multiply values with to draw them, and the unit then."""
    unit = BY_NAME[name].unit if name in BY_NAME else ""
    return {"s": (1e3, "ms"), "1": (1.0, "")}.get(unit, (1.0, unit))


def _plain(values: Any) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(v) if np.isfinite(v) else None for v in values.tolist()]


def _head(report: Mapping[str, Any]) -> str:
    run, stretch = report["run"], report["range"]
    health = report["system_health"]
    score = report["health"]["score"]
    cards = [
        (name, shown(value, report["metrics"].get(name, {}).get("unit", "1")))
        for name, value in report["performance_metrics"].items()
    ]
    cards += [
        ("alerts firing", str(len(report["alerts"]["firing"]))),
        ("errors", str(sum(error["count"] for error in report["errors"]))),
        ("windows", f"{stretch['windows']:,}"),
    ]
    boxes = "".join(
        f"<div class='card'><div class='big'>{html.escape(value)}</div>{html.escape(name)}</div>"
        for name, value in cards
    )
    badges = "".join(
        f"<span class='badge {html.escape(v['status'])}'>{html.escape(reported_name(name))}</span>"
        for name, v in report["health"]["components"].items()
        if v["status"] != "unknown"
    )
    facts = (
        f"{run.get('state', 'unknown')}, step {run.get('step')}, "
        f"{stretch['from']} to {stretch['to']}, {run.get('world_size', 1)} process(es) on "
        f"{run.get('host', '?')}, commit {(run.get('git_commit') or 'unknown')[:12]}"
    )
    rating = "" if score is None else f" · {score:.0f} of 100"
    return (
        f"<header><h1>{html.escape(str(run.get('folder') or 'CMR run'))}</h1>"
        f"<span class='badge {html.escape(health)} large'>{html.escape(health)}{rating}</span>"
        f"<p>{html.escape(facts)}</p><p class='lead'>"
        f"{html.escape(report['bottleneck']['sentence'])}</p>{badges}</header>"
        f"<div class='cards'>{boxes}</div>"
    )


def _alert_table(report: Mapping[str, Any]) -> str:
    rows = [
        (row["step"], row["rule"], f"{row['name']} {row['severity'] or ''}", row["message"])
        for row in report["alerts"]["transitions"][-100:]
    ]
    return _table("Alert log", ("step", "alert", "what", "because"), rows)


def _error_table(report: Mapping[str, Any]) -> str:
    heads = ("origin", "component", "layer", "rank", "count", "steps", "what")
    rows = [
        (
            error["origin"],
            error["component"],
            "" if error["layer"] is None else error["layer"],
            error["rank"],
            error["count"],
            f"{error['first_step']} to {error['last_step']}",
            f"{error['type']}: {error['message']}",
        )
        for error in sorted(report["errors"], key=lambda e: -e["count"])[:100]
    ]
    return _table("Errors", heads, rows)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<section><h2>{html.escape(title)}</h2><div class='scroll'><table><tr>{head}</tr>{body}"
        "</table></div></section>"
    )


def _foot(report: Mapping[str, Any]) -> str:
    versions = report["run"].get("versions", {})
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"<footer>{html.escape(text)}</footer>"


_PAGE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{{font:14px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1280px;padding:20px;color:#1d2430;
background:#f5f6f8}}
h1{{display:inline-block;margin:0 12px 0 0;font-size:22px}} h2{{font-size:16px;margin:0}}
section,header{{background:#fff;border:1px solid #e3e6eb;border-radius:8px;padding:14px 16px;
margin:0 0 14px}}
.note{{margin:0 0 6px;color:#68707d}} .lead{{font-size:15px;margin:6px 0 10px}}
.grid{{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}}
.chart{{margin:0;min-width:0}} .wide{{grid-column:1/-1}}
.cards{{display:grid;grid-template-columns:repeat(6,1fr);gap:10px;margin-bottom:14px}}
.card{{background:#fff;border:1px solid #e3e6eb;border-radius:8px;padding:10px 12px;color:#68707d}}
.big{{font-size:20px;color:#1d2430}}
.badge{{display:inline-block;border-radius:10px;padding:1px 9px;margin:0 5px 4px 0;color:#fff;
background:#8b93a1}} .large{{font-size:15px}}
.healthy{{background:#2e9e5b}} .warning{{background:#b98900}} .critical{{background:#d64545}}
table{{border-collapse:collapse;width:100%}} td,th{{text-align:left;padding:3px 10px 3px 0;
border-bottom:1px solid #eef0f3;vertical-align:top}} .scroll{{overflow-x:auto;max-height:420px}}
footer{{color:#8b93a1;font-size:12px}}
@media (max-width:800px){{.grid{{grid-template-columns:1fr}}
.cards{{grid-template-columns:1fr 1fr}}}}
</style><script>{script}</script></head><body>
{body}
</body></html>
"""
