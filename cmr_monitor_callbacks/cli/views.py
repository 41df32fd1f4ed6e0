"""What ``status`` and ``watch`` show of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind
from cmr_monitor_callbacks.health import reported_name
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.reading import Range
from cmr_monitor_callbacks.reports.contents import report_of
from cmr_monitor_callbacks.reports.numbers import shown

_STYLE: Final = {
    "healthy": "green",
    "warning": "yellow",
    "error": "dark_orange",
    "critical": "red",
    "unknown": "bright_black",
}
_STATES: Final = {"running": "green", "ended": "default", "died": "red", "unknown": "yellow"}
_BARS: Final = " ▁▂▃▄▅▆▇█"
_WATCHED: Final = (
    ("stored", "storage_efficiency"),
    ("full", "utilization_rate"),
    ("evicted", "eviction_count"),
    ("recon.", "avg_reconstruction_time"),
)
_WHOLE: Final = ("throughput", "step_time", "data_wait_share", "cache_hit_rate", "error_rate")


def sparkline(values: Sequence[float], width: int, top: float | None = None) -> str:
    """Values as a line of blocks, the newest last; a gap where there is no data.

    Args:
        values: the oldest first.
        width: characters; of more values the newest.
        top: what a full block stands for; None: the greatest value.

    >>> sparkline([0.0, 0.5, 1.0, math.nan], 4)
    '▁▅█ '
    """
    newest = np.asarray(values, dtype=float)[-width:]
    given = newest[np.isfinite(newest)]
    greatest = top if top is not None else float(given.max(initial=0.0))
    out = []
    for value in newest:
        if not math.isfinite(value):
            out.append(" ")
        elif greatest <= 0:
            out.append(_BARS[1])
        else:
            share = min(1.0, max(0.0, value / greatest))
            out.append(_BARS[1 + round(share * (len(_BARS) - 2))])
    return "".join(out).rjust(width)


def status_view(history: RunHistory, time_range: Range = None) -> RenderableType:
    """A run as it stands: health, layers, alerts and where the time goes."""
    report = report_of(history, time_range)
    return Group(
        _headline(report),
        Text(report["bottleneck"]["sentence"]),
        *_components(report),
        *_layer_table(report),
        *_open(report),
        *_error_lines(report),
    )


def watch_view(
    history: RunHistory, time_range: Range, width: int = 100, now: float | None = None
) -> RenderableType:
    """A running job at a glance: the newest windows as lines of blocks, health and alerts."""
    report = report_of(history, time_range)
    keys = [SeriesKey("train", name) for name in _WHOLE]
    layers = history.layers()
    keys += [SeriesKey("train", name, layer) for layer in layers for _, name in _WATCHED]
    found = history.many(keys, time_range, max_points=2000)
    room = max(8, min(24, (width - 12) // len(_WATCHED) - 12))
    age = _age(history, time.time() if now is None else now)
    return Group(
        Panel(
            Group(_headline(report, age), *_components(report)),
            title=str(report["run"].get("folder") or "run"),
            border_style=_STYLE[report["system_health"]],
        ),
        _whole_lines(found, max(8, width // 2 - 30)),
        _layer_lines(found, layers, room),
        *_open(report),
        *_error_lines(report),
    )


def _headline(report: Mapping[str, Any], age: str = "") -> Text:
    run, stretch = report["run"], report["range"]
    score = report["health"]["score"]
    line = Text()
    line.append(report["system_health"], style=f"bold {_STYLE[report['system_health']]}")
    if score is not None:
        line.append(f" ({score:.0f} of 100)")
    line.append("  ")
    state = run.get("state", "unknown")
    line.append(state, style=_STATES.get(state, "default"))
    if run.get("outcome") not in (None, "completed"):
        line.append(f" ({run['outcome']})")
    step = run.get("step")
    line.append("  no window yet" if step is None else f"  step {step:,}")
    line.append(f"  {stretch['windows']:,} windows")
    if age:
        line.append(f"  {age}")
    return line


def _age(history: RunHistory, now: float) -> str:
    newest = history.last()
    if newest is None:
        return ""
    seconds = max(0.0, now - newest[1])
    return f"last window {seconds:.0f} s ago"


def _components(report: Mapping[str, Any]) -> list[RenderableType]:
    known = {
        name: verdict
        for name, verdict in report["health"]["components"].items()
        if verdict["status"] != "unknown"
    }
    if not known:
        return []
    texts = [
        Text(f"● {reported_name(name)} {shown(v['score'], '0..100')}", style=_STYLE[v["status"]])
        for name, v in known.items()
    ]
    return [Columns(texts, padding=(0, 2))]


def _layer_table(report: Mapping[str, Any]) -> list[RenderableType]:
    heads = (
        *(("stored", "states_stored"), ("share", "storage_efficiency"), ("held", "total_entries")),
        *(("full", "utilization_rate"), ("evicted", "eviction_count")),
        *(("hits", "retrieval_hit_rate"), ("recon.", "total_reconstructions")),
        ("each", "avg_reconstruction_time"),
    )
    columns = [
        (head, name)
        for head, name in heads
        if any(values.get(name) is not None for values in report["layers"].values())
    ]
    if not columns:
        return []
    table = Table(box=SIMPLE_HEAD, title="Memory by layer", padding=(0, 1, 0, 0))
    table.add_column("layer")
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for layer, values in report["layers"].items():
        cells = [shown(values.get(name), BY_NAME[name].unit) for _, name in columns]
        table.add_row(Text(layer), *cells)
    return [table]


def _open(report: Mapping[str, Any]) -> list[RenderableType]:
    firing, pending = report["alerts"]["firing"], report["alerts"]["pending"]
    if not firing and not pending:
        return [Text("No alert is firing.", style="green")]
    lines: list[RenderableType] = []
    for row in firing:
        line = Text(f"{row['severity'] or ''} ", style=_STYLE.get(row["severity"], "red"))
        line.append(f"{row['rule']} since step {row['step']}: ", style="bold")
        line.append(row["message"], style="default")
        lines.append(line)
    if pending:
        names = ", ".join(dict.fromkeys(row["rule"] for row in pending))
        lines.append(Text(f"pending: {names}", style="bright_black"))
    return lines


def _error_lines(report: Mapping[str, Any]) -> list[RenderableType]:
    worst = sorted(report["errors"], key=lambda error: -error["count"])[:5]
    lines: list[RenderableType] = []
    for error in worst:
        where = "" if error["layer"] is None else f" at layer {error['layer']}"
        rank = f" on rank {error['rank']}" if error["rank"] else ""
        text = (
            f"{error['count']} × {error['type']} in {error['component']}{where}{rank}: "
            f"{error['message']}"
        )
        lines.append(Text(text, style="red" if error["origin"] == "model" else "bright_black"))
    more = len(report["errors"]) - len(worst)
    return [*lines, *([Text(f"and {more} more kinds of error")] if more > 0 else [])]


def _whole_lines(found: Mapping[SeriesKey, Series], room: int) -> RenderableType:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in _WHOLE:
        series = found[SeriesKey("train", name)]
        if len(series):
            unit = BY_NAME[name].unit
            now = shown(float(series.last[-1]), unit)
            top = 1.0 if unit == "1" and name == "cache_hit_rate" else None
            line = Text(sparkline(series.value.tolist(), room, top), style="cyan")
            table.add_row(Text(name), Text(now, justify="right"), line)
    return table


def _layer_lines(
    found: Mapping[SeriesKey, Series], layers: Sequence[Any], room: int
) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", no_wrap=True, min_width=5)
    shown_columns = [
        (head, name)
        for head, name in _WATCHED
        if any(len(found[SeriesKey("train", name, layer)]) for layer in layers)
    ]
    for head, _ in shown_columns:
        table.add_column(head, no_wrap=True)
    for layer in layers:
        cells = []
        for _, name in shown_columns:
            series = found[SeriesKey("train", name, layer)]
            cells.append(_cell(series, name, room))
        table.add_row(Text(str(layer)), *cells)
    return table


def _cell(series: Series, name: str, room: int) -> Text:
    if not len(series):
        return Text("–")
    info = BY_NAME[name]
    counter = info.kind is Kind.COUNTER
    # a point of a long run stands for several windows
    values = series.added / np.maximum(series.count, 1) if counter else series.value
    unit = info.unit
    newest = float(values[-1]) if counter else value_over_last(series)
    line = Text(f"{shown(newest, unit):>8} ")
    top = 1.0 if unit == "1" else None
    line.append(sparkline(values.tolist(), room, top), style="cyan")
    return line


def value_over_last(series: Series) -> float:
    """The newest value that is one; NaN without data."""
    given = series.last[np.isfinite(series.last)]
    return float(given[-1]) if len(given) else math.nan


__all__ = ["sparkline", "status_view", "watch_view"]
