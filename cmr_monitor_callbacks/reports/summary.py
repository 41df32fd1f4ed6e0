"""The summary at the end of a run, for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.health import HealthReport, Transition
from cmr_monitor_callbacks.layers import layer_order
from cmr_monitor_callbacks.sampling import every
from cmr_monitor_callbacks.snapshot import Over, Snapshot

_COLUMNS: Final[tuple[tuple[str, str, Over], ...]] = (
    ("captured", "states_captured", "run"),
    ("stored", "states_stored", "run"),
    ("share", "storage_efficiency", "run"),
    ("now", "storage_efficiency", "window"),
    ("held", "total_entries", "run"),
    ("full", "utilization_rate", "run"),
    ("evicted", "eviction_count", "run"),
    ("recon.", "total_reconstructions", "run"),
    ("ms each", "avg_reconstruction_time", "run"),
)
_STYLES: Final = {"resolved": "green", "inactive": "green", "pending": "bright_black"}
_LEGEND: Final = (
    "share: stored of captured states, over the run; now: in the last window;\n"
    "full: entries held of the capacity; recon.: calls that used a memory"
)


def run_summary(
    snapshot: Snapshot,
    health: HealthReport,
    transitions: Sequence[Transition],
    files: str = "",
) -> RenderableType:
    """Health per component, a table of the layers, the alerts, and where the files are.

    Args:
        snapshot: the newest training snapshot.
        health: the newest verdict.
        transitions: what happened to the alerts, the oldest first.
        files: where the run's files are; empty: not said.
    """
    parts: list[RenderableType] = [_health(health), _layers(snapshot), _alerts(transitions)]
    if health.sample_every > 1:
        steps = every(health.sample_every)
        parts.insert(1, Text(f"Calls are timed, and similarities taken, in {steps}."))
    if files:
        parts.append(Text(f"Files: {files}"))
    return Group(*parts)


def as_html(shown: RenderableType, width: int = 100) -> str:
    r"""What a terminal would show, for a notebook: a piece of HTML that stands alone.

    Args:
        shown: a summary.
        width: in characters.

    >>> as_html("a < b")
    '<pre style="line-height:1.2">a &lt; b\n</pre>'
    """
    console = Console(record=True, width=width, file=io.StringIO(), force_jupyter=False)
    console.print(shown)
    form = '<pre style="line-height:1.2">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=form)


def _health(health: HealthReport) -> RenderableType:
    table = Table(
        box=SIMPLE_HEAD, title=f"Health: {health.status.value} ({health.score:.0f} of 100)"
    )
    table.add_column("component")
    table.add_column("status")
    table.add_column("score", justify="right")
    for name, component in health.components.items():
        color = {"grey": "bright_black"}.get(component.status.color, component.status.color)
        score = "" if math.isnan(component.score) else f"{component.score:.0f}"
        table.add_row(name, Text(component.status.value, style=color), score)
    return table


def _layers(snapshot: Snapshot) -> RenderableType:
    title = f"Memory by layer, after {snapshot.step + 1} steps"
    table = Table(title=title, box=SIMPLE_HEAD, caption=_LEGEND, padding=(0, 1, 0, 0))
    table.add_column("layer")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in [*sorted(snapshot.layer_ids, key=layer_order), None]:
        cells = [_shown(name, snapshot.value(name, layer, over=over)) for _, name, over in _COLUMNS]
        if layer is None:
            table.add_section()
        table.add_row(Text("all" if layer is None else str(layer)), *cells)
    return table


def _alerts(transitions: Sequence[Transition]) -> RenderableType:
    shown = list(transitions)
    if not any(t.state.phase.fires for t in shown):
        return Text("Alerts: none fired")
    table = Table(title="Alerts", box=SIMPLE_HEAD)
    for heading in ("step", "alert", "what", "because"):
        table.add_column(heading)
    for transition in shown:
        severity = transition.state.severity
        what = transition.name if severity is None else f"{transition.name} ({severity.value})"
        style = _STYLES.get(transition.name, "yellow")
        table.add_row(
            str(transition.step),
            Text(transition.state.rule),  # brackets in a name are no markup
            Text(what, style=style),
            Text(transition.message),
        )
    return table


def _shown(name: str, value: float) -> str:
    """A number in short: shares in percent, times in ms, a dash where there is no data."""
    if math.isnan(value):
        return "–"
    unit = BY_NAME[name].unit
    if unit == "1":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value * 1e3:.2f}"
    return f"{value:,.0f}"
