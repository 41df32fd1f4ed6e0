"""Numbers over time as lines of blocks, for `watch`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind
from cmr_monitor_callbacks.history import Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.reports.numbers import shown

_BARS: Final = " ▁▂▃▄▅▆▇█"
BY_LAYER: Final = (
    ("stored", "storage_efficiency"),
    ("full", "utilization_rate"),
    ("evicted", "eviction_count"),
    ("recon.", "avg_reconstruction_time"),
)
OF_WHOLE: Final = ("throughput", "step_time", "data_wait_share", "cache_hit_rate", "error_rate")
_CELL: Final = 16
"""Columns for a number and the shortest line of blocks that says something."""


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


def whole_lines(found: Mapping[SeriesKey, Series], room: int) -> RenderableType:
    """Numbers of the whole model; ``room``: columns of a line of blocks."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in OF_WHOLE:
        series = found[SeriesKey("train", name)]
        if len(series):
            unit = BY_NAME[name].unit
            now = shown(float(series.last[-1]), unit)
            top = 1.0 if unit == "1" and name == "cache_hit_rate" else None
            line = Text(sparkline(series.value.tolist(), room, top), style="cyan")
            table.add_row(Text(name), Text(now, justify="right"), line)
    return table


def layer_lines(
    found: Mapping[SeriesKey, Series], layers: Sequence[Any], width: int
) -> RenderableType:
    """A row for each layer, of as many numbers as the terminal has room for."""
    columns = [
        (head, name)
        for head, name in BY_LAYER
        if any(len(found[SeriesKey("train", name, layer)]) for layer in layers)
    ]
    if not columns:
        return Text("")
    rest = width - 4 - max(5, *(min(20, len(str(layer))) for layer in layers))
    most = max(1, min(len(columns), rest // _CELL))
    room = max(4, min(24, rest // most - 11))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for head, _ in columns[:most]:
        table.add_column(head, no_wrap=True)
    for layer in layers:
        cells = [
            _cell(found[SeriesKey("train", name, layer)], name, room) for _, name in columns[:most]
        ]
        table.add_row(Text(str(layer)), *cells)
    return Group(table, *left_out([head for head, _ in columns[most:]]))


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


def left_out(heads: Sequence[str]) -> list[RenderableType]:
    """What is said of columns without room: half a number is worse than none."""
    if not heads:
        return []
    return [Text(f"in a wider terminal: {', '.join(heads)}", style="bright_black")]
