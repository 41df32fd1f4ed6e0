"""A report as one HTML file that needs nothing else: charts of a run over time."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from cmr_monitor_callbacks.health import reported_name
from cmr_monitor_callbacks.history import HistoryError, RunHistory
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.reports import charts
from cmr_monitor_callbacks.reports.contents import report_of
from cmr_monitor_callbacks.reports.drawing import Figure
from cmr_monitor_callbacks.reports.numbers import shown, state_text, stretch_text
from cmr_monitor_callbacks.reports.spans import alert_label, alert_spans
from cmr_monitor_callbacks.resources import RESOURCES

_POINTS: Final = 1200
_MOST: Final = 100
_PAGE: Final = Path(__file__).with_name("page.html")
Section = tuple[str, str, list[Figure]]


def to_html(history: RunHistory, time_range: Range = None) -> str:
    """A page with charts of a run's history; it holds all that it needs, scripts included.

    Args:
        history: of the run.
        time_range: the stretch that is shown, see `RunHistory.series`.

    Raises:
        HistoryError: plotly is not installed, or the store cannot be read.
        ValueError: the range cannot be read.
    """
    try:
        import plotly.offline
    except ImportError:
        text = "the HTML report needs plotly: pip install 'cmr-monitor-callbacks[dashboard]'"
        raise HistoryError(text) from None
    report, sections = history.consistent(lambda: _read(history, time_range))
    body = [_head(report)]
    for title, note, figures in sections:
        if title == "Trends":
            body.append(_trend_table(report))
        if figures:
            body.append(_section(title, note, figures))
        if title == "Alerts":
            body += [_alert_table(report), _error_table(report), _diagnostics(report)]
    body.append(_foot(report))
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(str(report["run"].get("folder") or "CMR run")),
        plotly=plotly.offline.get_plotlyjs(),
        body="\n".join(part for part in body if part),
    )


def _read(history: RunHistory, time_range: Range) -> tuple[dict[str, Any], list[Section]]:
    report = report_of(history, time_range)
    return report, _sections(history, time_range, report["range"])


def _sections(history: RunHistory, time_range: Range, stretch: Mapping[str, Any]) -> list[Section]:
    keys = [*history.list_series("train"), *history.list_series(RESOURCES)]
    found = history.many(keys, time_range, max_points=_POINTS)
    series = {key: one for key, one in found.items() if len(one)}
    newest = history.last("train")
    spans = alert_spans(history.alerts(time_range), end=newest[0] if newest else 0)
    band = "the model as a whole; a band spans the least and greatest window of each point."
    return [
        ("Health", "Status of each component over the run, and the score.", charts.health(series)),
        (
            "Alerts",
            "When each alert was firing.",
            charts.alerts(spans, (stretch["first_step"], stretch["last_step"])),
        ),
        ("Trends", f"Over the run: {band}", charts.trends(series, history.marks(time_range))),
        ("Layers", "Which layer earns its memory: a row for each layer.", charts.layers(series)),
        ("Latency", "Quantiles of the time of a call.", charts.latency(series)),
        ("Ranks", "Mean time of a step on each rank.", charts.ranks(series)),
        (
            "Resources",
            "Of rank 0's machine, sample by sample.",
            charts.resources(series),
        ),
    ]


def _section(title: str, note: str, figures: Sequence[Figure]) -> str:
    drawn = "".join(
        f"<figure class='chart{' wide' if figure['wide'] else ''}' "
        f"style='min-height:{figure['layout']['height']}px'>"
        f"<script type='application/json'>{_embedded(figure)}</script></figure>"
        for figure in figures
    )
    return (
        f"<section id='{title.lower()}'><h2>{html.escape(title)}</h2>"
        f"<p class='note'>{html.escape(note)}</p><div class='grid'>{drawn}</div></section>"
    )


def _embedded(figure: Figure) -> str:
    """JSON in which nothing ends the script that it stands in."""
    text = json.dumps(figure, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


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
        ("errors", f"{sum(error['count'] for error in report['errors']):,}"),
        ("windows", f"{stretch['windows']:,}"),
    ]
    boxes = "".join(
        f"<div class='card'><div class='big'>{html.escape(value)}</div>{html.escape(name)}</div>"
        for name, value in cards
    )
    badges = "".join(
        f"<span class='badge {html.escape(status)}'>{html.escape(name)}: {html.escape(status)}"
        "</span>"
        for name, status in report["component_status"].items()
        if status != "unknown"
    )
    facts = (
        f"{state_text(run)}. {stretch_text(stretch)}; "
        f"{run.get('world_size', 1)} process(es) on {run.get('host') or 'unknown'}, commit "
        f"{(run.get('git_commit') or 'unknown')[:12]}"
    )
    rating = "" if score is None else f" · {score:.0f} of 100"
    return (
        f"<header><h1>{html.escape(str(run.get('folder') or 'CMR run'))}</h1>"
        f"<span class='badge {html.escape(health)} large'>{html.escape(health)}{rating}</span>"
        f"<p class='note'>{html.escape(facts)}</p><p class='lead'>"
        f"{html.escape(report['bottleneck']['sentence'])}</p>{badges}</header>"
        f"<div class='cards'>{boxes}</div>"
    )


def _trend_table(report: Mapping[str, Any]) -> str:
    rows = [
        (trend["metric"], trend["trend"], f"{trend['change']:+.0%}")
        for trend in report["trends"][:_MOST]
    ]
    return _table("What changed", ("metric", "trend", "change over the range"), rows)


def _alert_table(report: Mapping[str, Any]) -> str:
    rows = [
        (row["step"], alert_label(row), f"{row['name']} {row['severity'] or ''}", row["message"])
        for row in report["alerts"]["transitions"]
    ]
    return _table("Alert log", ("step", "alert", "what", "because"), rows[::-1])


def _error_table(report: Mapping[str, Any]) -> str:
    heads = ("origin", "component", "layer", "rank", "count", "steps", "what")
    rows = [
        (
            error["origin"],
            reported_name(error["component"]),
            "" if error["layer"] is None else error["layer"],
            error["rank"],
            error["count"],
            f"{error['first_step']} to {error['last_step']}",
            f"{error['type']}: {error['message']}",
        )
        for error in sorted(report["errors"], key=lambda e: -e["count"])
    ]
    return _table("Errors", heads, rows)


def _diagnostics(report: Mapping[str, Any]) -> str:
    """What the last look at the model found, and what it could not look at."""
    found = report["diagnostics"]
    if found is None:
        return ""
    rows = [
        (
            f"<span class='badge {html.escape(one['severity'])}'>{html.escape(one['severity'])}"
            "</span>",
            "" if one["layer"] is None else html.escape(str(one["layer"])),
            f"<strong>{html.escape(one['name'])}</strong>: {html.escape(one['sentence'])}",
            html.escape(one["advice"]),
        )
        for one in found["findings"]
    ]
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows[:_MOST])
    more = f"<p class='note'>and {len(rows) - _MOST:,} more</p>" if len(rows) > _MOST else ""
    heads = "".join(f"<th>{name}</th>" for name in ("", "layer", "finding", "what to do"))
    table = f"<div class='scroll'><table><tr>{heads}</tr>{body}</table></div>{more}"
    unknown = "; ".join(found["not_available"])
    note = f"A look at the model at step {found['step']}: {found['status']}."
    return (
        f"<section id='diagnostics'><h2>Diagnostics</h2><p class='note'>{html.escape(note)}</p>"
        + (table if rows else "<p>Nothing was found.</p>")
        + (f"<p class='note'>Not looked at: {html.escape(unknown)}</p>" if unknown else "")
        + "</section>"
    )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows[:_MOST]
    )
    more = len(rows) - _MOST
    note = f"<p class='note'>and {more:,} more</p>" if more > 0 else ""
    return (
        f"<section id='{title.lower().replace(' ', '-')}'><h2>{html.escape(title)}</h2>"
        f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>{note}</section>"
    )


def _foot(report: Mapping[str, Any]) -> str:
    versions = report["run"].get("versions", {})
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"<footer>{html.escape(text)}</footer>"
