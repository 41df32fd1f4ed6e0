"""What ``status`` and ``watch`` show of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.cli.sparklines import (
    BY_LAYER,
    OF_WHOLE,
    layer_lines,
    left_out,
    whole_lines,
)
from cmr_monitor_callbacks.health import reported_name
from cmr_monitor_callbacks.history import RunHistory
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
_RANK: Final = {"warning": 1, "error": 2, "critical": 3}
_MOST_ALERTS: Final = 8


def status_view(
    history: RunHistory, report: Mapping[str, Any], width: int = 100, now: float | None = None
) -> RenderableType:
    """A run as it stands: health, layers, alerts and where the time goes."""
    age = _age(history, report, time.time() if now is None else now)
    return Group(
        _headline(report, age),
        Text(report["bottleneck"]["sentence"]),
        *_components(report),
        *_layer_table(report, width),
        *_open(report),
        *_error_lines(report),
        *_worst_finding(report),
    )


def watch_view(
    history: RunHistory, time_range: Range, width: int = 100, now: float | None = None
) -> RenderableType:
    """A running job at a glance: the newest windows as lines of blocks, health and alerts."""
    report = report_of(history, time_range)
    keys = [SeriesKey("train", name) for name in OF_WHOLE]
    layers = history.layers()
    keys += [SeriesKey("train", name, layer) for layer in layers for _, name in BY_LAYER]
    found = history.many(keys, time_range, max_points=2000)
    age = _age(history, report, time.time() if now is None else now)
    return Group(
        Panel(
            Group(_headline(report, age), *_components(report)),
            title=Text(_place(history, width - 8)),
            border_style=_STYLE[report["system_health"]],
        ),
        *_open(report, _MOST_ALERTS),  # above the layers: a terminal may have few lines
        *_error_lines(report),
        whole_lines(found, max(8, width // 2 - 30)),
        layer_lines(found, layers, width),
    )


def _place(history: RunHistory, room: int) -> str:
    """The run's folder; of a long one its end, which tells runs apart."""
    place = "run" if history.path is None else str(history.path.parent)
    return place if len(place) <= room else f"…{place[-max(1, room - 1) :]}"


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


def _age(history: RunHistory, report: Mapping[str, Any], now: float) -> str:
    """How long ago the newest window ended; of a run that is over nobody asks."""
    newest = history.last()
    if newest is None or report["run"].get("state") == "ended":
        return ""
    return f"last window {ago(max(0.0, now - newest[1]))} ago"


def ago(seconds: float) -> str:
    """A length of time in its largest unit.

    >>> ago(4.2), ago(100), ago(7200), ago(200000)
    ('4 s', '100 s', '2 h', '2 d')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


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


def _layer_table(report: Mapping[str, Any], width: int) -> list[RenderableType]:
    known = (
        *(("stored", "states_stored"), ("share", "storage_efficiency"), ("held", "total_entries")),
        *(("full", "utilization_rate"), ("evicted", "eviction_count")),
        *(("hits", "retrieval_hit_rate"), ("recon.", "total_reconstructions")),
        ("each", "avg_reconstruction_time"),
    )
    columns = [
        (head, name)
        for head, name in known
        if any(values.get(name) is not None for values in report["layers"].values())
    ]
    if not columns:
        return []
    rows = [
        [layer, *(shown(values.get(name), BY_NAME[name].unit) for _, name in columns)]
        for layer, values in report["layers"].items()
    ]
    heads = ("layer", *(head for head, _ in columns))
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    fitting = [sum(widths[: i + 1]) + 2 * i + 4 <= width for i in range(len(heads))]
    most = max(2, sum(fitting))
    table = Table(box=SIMPLE_HEAD, title="Memory by layer", padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for head in heads[1:most]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:most])
    return [table, *left_out(heads[most:])]


def _open(report: Mapping[str, Any], most: int | None = None) -> list[RenderableType]:
    """A line for each alert that fires, the worst first."""
    firing, pending = report["alerts"]["firing"], report["alerts"]["pending"]
    over = report["run"].get("state") in ("ended", "died")
    if not firing and not pending:
        text = "No alert was firing at the end." if over else "No alert is firing."
        return [Text(text, style="green")]
    worst = sorted(firing, key=lambda row: -_RANK.get(row["severity"], 0))
    lines: list[RenderableType] = []
    for row in worst[:most]:
        line = Text(f"{row['severity'] or ''} ", style=_STYLE.get(row["severity"], "red"))
        line.append(f"{row['rule']} since step {row['step']}: ", style="bold")
        line.append(row["message"], style="default")
        lines.append(line)
    if len(worst) > len(lines):
        lines.append(Text(f"and {len(worst) - len(lines)} more alerts"))
    if pending:
        names = ", ".join(dict.fromkeys(row["rule"] for row in pending))
        lines.append(Text(f"pending: {names}", style="bright_black"))
    return lines


def _worst_finding(report: Mapping[str, Any]) -> list[RenderableType]:
    """A line for what the diagnostics found; of several the worst, which comes first."""
    looked = report["diagnostics"]
    if looked is None or not looked["findings"]:
        return []
    worst, *others = looked["findings"]
    line = Text(f"{worst['severity']} ", style=_STYLE[worst["severity"]])
    where = "" if worst["layer"] is None else f" at layer {worst['layer']}"
    line.append(f"diagnosed at step {looked['step']}: {worst['name']}{where}: ", style="bold")
    line.append(worst["sentence"], style="default")
    if others:
        line.append(f" (and {len(others)} more: cmr-monitor diagnose)", style="bright_black")
    return [line]


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


__all__ = ["status_view", "watch_view"]
