"""A report as Markdown, for a terminal, an issue or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.reports.numbers import shown, state_text, stretch_text
from cmr_monitor_callbacks.reports.spans import alert_label

_LAYER_COLUMNS: Final = (
    ("captured", "states_captured"),
    ("stored", "states_stored"),
    ("share", "storage_efficiency"),
    ("held", "total_entries"),
    ("full", "utilization_rate"),
    ("evicted", "eviction_count"),
    ("retrievals", "total_retrievals"),
    ("recon.", "total_reconstructions"),
    ("ms each", "avg_reconstruction_time"),
)
_MOST: Final = 20
_MARKUP: Final = re.compile(r"[\\`*~|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
"""What Markdown reads as markup. An underscore within a word is none."""


def to_markdown(report: Mapping[str, Any]) -> str:
    """A report (see `report_of`) as Markdown; texts of others are escaped, so that none is markup.

    >>> from cmr_monitor_callbacks import CMRPerformanceMonitor
    >>> monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    >>> with monitor.track_performance():
    ...     pass
    >>> to_markdown(monitor.generate_report()).splitlines()[0]
    '# CMR run'
    """
    run = report["run"]
    lines = [f"# CMR run {_plain(run.get('folder') or '')}".rstrip(), ""]
    score = report["health"]["score"]
    lines += [
        f"**{report['system_health']}**"
        + ("" if score is None else f" (score {score:.0f} of 100)")
        + f", {_plain(state_text(run))}"
        + f". {_plain(report['bottleneck']['sentence'])}",
        "",
        f"{stretch_text(report['range'])}; {run.get('world_size', 1)} process(es) on "
        f"{_plain(run.get('host') or 'unknown')}, commit "
        f"{_plain(run.get('git_commit') or 'unknown')}.",
        "",
    ]
    lines += _health(report)
    lines += _layers(report)
    lines += _ranks(report)
    lines += _trends(report)
    lines += _resources(report)
    lines += _alerts(report)
    lines += _errors(report)
    lines += _diagnostics(report)
    if report["marks"]:
        lines += ["## Marks", ""]
        lines += [f"- step {mark['step']}: {_plain(mark['label'])}" for mark in report["marks"]]
        lines.append("")
    return "\n".join(lines)


def _diagnostics(report: Mapping[str, Any]) -> list[str]:
    found = report["diagnostics"]
    if found is None:
        return []
    lines = [f"## Diagnostics at step {found['step']}: {found['status']}", ""]
    for one in found["findings"]:
        layer = "" if one["layer"] is None else f", layer {_plain(str(one['layer']))}"
        lines.append(
            f"- **{one['severity']}** {_plain(one['name'])}{layer}: {_plain(one['sentence'])}. "
            f"{_plain(one['advice'])}"
        )
    lines += [f"- not looked at: {_plain(text)}" for text in found["not_available"]]
    return [*lines, ""]


def _health(report: Mapping[str, Any]) -> list[str]:
    rows = [
        (name, verdict["status"], shown(verdict["score"], "0..100"))
        for name, verdict in report["health"]["components"].items()
        if verdict["status"] != "unknown"
    ]
    performance = [
        (name, shown(value, report["metrics"].get(name, {}).get("unit", "1")))
        for name, value in report["performance_metrics"].items()
    ]
    return [
        *("## Health", ""),
        *(_table(("component", "status", "score"), rows) if rows else ()),
        *_table(("performance", "mean"), performance),
    ]


def _layers(report: Mapping[str, Any]) -> list[str]:
    columns = [
        (head, name)
        for head, name in _LAYER_COLUMNS
        if any(values.get(name) is not None for values in report["layers"].values())
    ]
    if not columns:
        return []
    rows = [
        (layer, *(_layer_cell(values.get(name), name) for _, name in columns))
        for layer, values in report["layers"].items()
    ]
    heads = ("layer", *(head for head, _ in columns))
    return ["## Memory by layer", "", *_table(heads, rows)]


def _layer_cell(value: float | None, name: str) -> str:
    unit = BY_NAME[name].unit
    if value is not None and unit == "s":
        return f"{value * 1e3:.3g}"
    return shown(value, unit)


def _ranks(report: Mapping[str, Any]) -> list[str]:
    if not report["ranks"]:
        return []
    names = list(dict.fromkeys(name for values in report["ranks"].values() for name in values))
    units = {name: report["metrics"].get(name, {}).get("unit", "1") for name in names}
    rows = [
        (rank, *(shown(values.get(name), units[name]) for name in names))
        for rank, values in report["ranks"].items()
    ]
    return ["## Ranks", "", *_table(("rank", *names), rows)]


def _trends(report: Mapping[str, Any]) -> list[str]:
    rows = [
        (trend["metric"], trend["trend"], f"{trend['change']:+.0%}")
        for trend in report["trends"][:_MOST]
    ]
    return ["## Trends", "", *_table(("metric", "trend", "change"), rows)] if rows else []


def _resources(report: Mapping[str, Any]) -> list[str]:
    names = ("mean", "min", "max", "last")
    rows = [
        (label, *(shown(values[name], values["unit"]) for name in names))
        for label, values in report["resources"].items()
    ]
    return ["## Resources", "", *_table(("resource", *names), rows)] if rows else []


def _alerts(report: Mapping[str, Any]) -> list[str]:
    alerts = report["alerts"]
    lines = ["## Alerts", ""]
    if not alerts["transitions"] and not alerts["firing"]:
        return [*lines, "None.", ""]
    for row in alerts["firing"]:
        told = f"{_plain(alert_label(row))}: {_plain(row['message'])}"
        lines.append(f"- **firing** ({row['severity'] or row['name']}) {told}")
    if alerts["firing"]:
        lines.append("")
    if alerts["transitions"]:
        lines += _table(("step", "alert", "what", "because"), _transitions(report))
    return lines


def _transitions(report: Mapping[str, Any]) -> list[Sequence[str]]:
    rows = report["alerts"]["transitions"]
    told: list[Sequence[str]] = [
        (
            str(row["step"]),
            alert_label(row),
            f"{row['name']} {row['severity'] or ''}",
            row["message"],
        )
        for row in rows[-_MOST:]
    ]
    if len(rows) > _MOST:
        told.insert(0, ("", f"{len(rows) - _MOST} earlier", "", ""))
    return told


def _errors(report: Mapping[str, Any]) -> list[str]:
    if not report["errors"]:
        return []
    rows = [
        (
            error["origin"],
            error["component"],
            "" if error["layer"] is None else str(error["layer"]),
            str(error["rank"]),
            str(error["count"]),
            f"{error['first_step']} to {error['last_step']}",
            f"{error['type']}: {error['message']}",
        )
        for error in sorted(report["errors"], key=lambda e: -e["count"])[:_MOST]
    ]
    heads = ("origin", "component", "layer", "rank", "count", "steps", "what")
    return ["## Errors", "", *_table(heads, rows)]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    lines += [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in rows]
    return [*lines, ""]


def _plain(text: str) -> str:
    r"""Text that reads as it is: nothing in it ends a cell or a line, or is markup or a tag.

    >>> print(_plain("a|b `c` <i> states_stored __init__"))
    a\|b \`c\` &lt;i&gt; states_stored \_\_init\_\_
    """
    one_line = _MARKUP.sub(r"\\\g<0>", " ".join(text.split()).replace("&", "&amp;"))
    return one_line.replace("<", "&lt;").replace(">", "&gt;")
