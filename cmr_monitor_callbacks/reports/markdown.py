"""A report as Markdown, for a terminal, an issue or a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.reports.numbers import shown

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


def to_markdown(report: Mapping[str, Any]) -> str:
    """A report (see `report_of`) as Markdown."""
    run, stretch = report["run"], report["range"]
    lines = [f"# CMR run {run.get('folder') or ''}".rstrip(), ""]
    score = report["health"]["score"]
    lines += [
        f"**{report['system_health']}**"
        + ("" if score is None else f" (score {score:.0f} of 100)")
        + f", {run.get('state', 'unknown')}"
        + (f", {run['outcome']}" if run.get("outcome") not in (None, "completed") else "")
        + f". {report['bottleneck']['sentence']}",
        "",
        f"{stretch['windows']} windows, steps {stretch['first_step']} to {stretch['last_step']}, "
        f"{stretch['from']} to {stretch['to']}; {run.get('world_size', 1)} process(es) on "
        f"{run.get('host', '?')}, commit {run.get('git_commit') or 'unknown'}.",
        "",
    ]
    lines += _health(report)
    lines += _layers(report)
    lines += _ranks(report)
    lines += _trends(report)
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
            f"- **{one['severity']}** `{one['name']}`{layer}: {_plain(one['sentence'])}. "
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
        *_table(("component", "status", "score"), rows),
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


def _alerts(report: Mapping[str, Any]) -> list[str]:
    alerts = report["alerts"]
    lines = ["## Alerts", ""]
    if not alerts["transitions"] and not alerts["firing"]:
        return [*lines, "None.", ""]
    for row in alerts["firing"]:
        lines.append(f"- **firing** ({row['severity']}) {row['rule']}: {_plain(row['message'])}")
    lines += ["", *_table(("step", "alert", "what", "because"), _transitions(report))]
    return lines


def _transitions(report: Mapping[str, Any]) -> list[Sequence[str]]:
    rows = report["alerts"]["transitions"]
    told: list[Sequence[str]] = [
        (str(row["step"]), row["rule"], f"{row['name']} {row['severity'] or ''}", row["message"])
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
    """Text in which nothing ends a cell or a line, or is read as a tag."""
    one_line = " ".join(text.split())
    return one_line.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
