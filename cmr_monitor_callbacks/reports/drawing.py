"""Line charts and heat maps of series, as plotly.js takes them."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.history import Series
from cmr_monitor_callbacks.reports.stretch import iso

Array = NDArray[np.float64]
Figure = dict[str, Any]
"""``data`` and ``layout`` of plotly.js, and ``wide``: whether it takes the page's width."""
_LINES: Final = ("#4a86d8", "#e07b39", "#2e9e5b", "#9b6bc4", "#c9504c", "#4c9fb0")
_BAND: Final = "rgba(74,134,216,0.22)"
_POINTS: Final = 600
_CELLS: Final = 300
"""Columns of a heat map: more than a chart has room for would only make the page heavy."""
_LONGEST: Final = 34


def lines(
    title: str,
    rows: Sequence[tuple[str | None, Series]],
    *,
    marks: Iterable[Mapping[str, Any]] = (),
    unit: str | None = None,
    wide: bool = False,
    by_time: bool = False,
) -> Figure:
    """Series over the steps; a band from the least to the greatest window of each point.

    Args:
        title: name of the metric.
        rows: label and series.
        marks: the user's, see `RunHistory.marks`.
        unit: of the values; None: the metric's.
        wide: whether it takes the page's width.
        by_time: over the time instead: several samples may belong to one step.
    """
    known = BY_NAME[title].unit if title in BY_NAME else rows[0][1].unit
    factor, shown_unit, form = _scale(known if unit is None else unit)
    at = "at" if by_time else "step"
    traces: list[dict[str, Any]] = []
    for i, (label, series) in enumerate(rows):
        one = thinned(series, _POINTS)
        steps = [iso(time) for time in one.time.tolist()] if by_time else one.step.tolist()
        if len(rows) == 1 and one.count.max(initial=0.0) > 1:
            traces += _band(steps, one, factor)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(steps) > 1 else "markers",
                "x": steps,
                "y": plain(one.value * factor),
                "name": html.escape(label or title, quote=False),
                "line": {"color": _LINES[i % len(_LINES)], "width": 1.8},
                "hovertemplate": f"{at} %{{x}}: %{{y:{form}}} {shown_unit}<extra></extra>",
            }
        )
    drawn = figure(title, traces, wide=wide)
    if by_time:
        drawn["layout"]["xaxis"]["title"]["text"] = "time (UTC)"
    drawn["layout"]["yaxis"] |= {"title": {"text": shown_unit}, "rangemode": "tozero"}
    drawn["layout"]["yaxis"] |= {"tickformat": ".3~%"} if "%" in form else {}
    drawn["layout"]["showlegend"] = len(rows) > 1
    drawn["layout"]["shapes"] = [_mark(mark) for mark in marks]
    return drawn


def _band(steps: Sequence[Any], one: Series, factor: float) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": steps,
            "y": plain(values * factor),
            "line": {"width": 0},
            "fill": fill,
            "fillcolor": _BAND,
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for values, fill in ((one.maximum, None), (one.minimum, "tonexty"))
    ]


def _mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": mark["step"],
        "x1": mark["step"],
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "width": 1, "color": "#888"},
        "label": {"text": cut([mark["label"]])[0], "font": {"size": 9, "color": "#888"}},
    }


def heat_map(
    title: str,
    rows: Sequence[tuple[str, Series]],
    values: Callable[[Series], Array],
    *,
    unit: str = "",
    words: Sequence[str] | None = None,
    wide: bool = False,
) -> Figure:
    """A row for each label, the first on top, over the steps.

    Args:
        title: of the chart.
        rows: label and series; all of the same steps.
        values: of a series' points, those that are drawn.
        unit: of the values.
        words: what a value is called, where it is a code.
        wide: whether it takes the page's width.
    """
    factor, shown_unit, form = _scale(unit)
    drawn = [thinned(one, _CELLS) for _, one in rows]
    table = [plain(values(one) * factor) for one in drawn]
    said = f"%{{z:{form}}} {shown_unit}" if words is None else "%{text}"
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": drawn[0].step.tolist(),
        "y": cut([name for name, _ in rows])[::-1],
        "z": table[::-1],
        "colorscale": "Viridis",
        "colorbar": {"thickness": 10, "title": {"text": shown_unit}},
        "hoverongaps": False,
        "hovertemplate": f"%{{y}}, step %{{x}}: {said}<extra></extra>",
    }
    if words is not None:
        trace["text"] = [[words[int(v or 0)] for v in row] for row in table[::-1]]
    if "%" in form:
        most = max((value for row in table for value in row if value is not None), default=0.0)
        trace |= {"zmin": 0.0, "zmax": max(1.0, most)}
        trace["colorbar"]["tickformat"] = ".3~%"
    few = len(rows) <= 16
    height = 100 + max((24 if few else 11) * len(rows), 60)
    made = figure(title, [trace], height=height, wide=wide)
    made["layout"]["yaxis"] |= {"type": "category", "showgrid": False}
    made["layout"]["yaxis"] |= {"dtick": 1} if few else {}
    made["layout"]["xaxis"] |= {"showgrid": False}
    return made


def figure(
    title: str, traces: Sequence[Mapping[str, Any]], *, height: int = 230, wide: bool = False
) -> Figure:
    """A chart over the steps; its colours are the page's."""
    layout = {
        "title": {"text": html.escape(title, quote=False), "font": {"size": 14}, "x": 0.01},
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 36, "b": 30},
        "xaxis": {"title": {"text": "step", "standoff": 2}, "automargin": True},
        "yaxis": {"automargin": True},
        "font": {"family": "system-ui, sans-serif", "size": 11},
    }
    return {"data": list(traces), "layout": layout, "wide": wide}


def thinned(series: Series, most: int) -> Series:
    """A series of at most so many points: each the summary of several that follow each other.

    >>> from cmr_monitor_callbacks.history.columns import SeriesKey
    >>> one = np.array([1.0, 3.0, np.nan, 5.0])
    >>> given = (~np.isnan(one)).astype(float)
    >>> series = Series(SeriesKey("train", "score"), "1", np.arange(4), one, one, given, *[one] * 4)
    >>> thinned(series, 2).value.tolist(), thinned(series, 2).maximum.tolist()
    ([2.0, 5.0], [3.0, 5.0])
    """
    size = -(-len(series) // most)
    if size <= 1:
        return series
    begins = np.arange(0, len(series), size)
    ends = np.append(begins[1:], len(series)) - 1
    count = np.add.reduceat(series.count, begins)
    total = np.add.reduceat(np.nan_to_num(series.value) * series.count, begins)
    places = np.where(np.isnan(series.last), -1, np.arange(len(series)))
    newest = np.maximum.reduceat(places, begins)
    return replace(
        series,
        step=series.step[ends],
        time=series.time[ends],
        value=np.divide(total, count, out=np.full(len(begins), np.nan), where=count > 0),
        count=count,
        minimum=np.fmin.reduceat(series.minimum, begins),
        maximum=np.fmax.reduceat(series.maximum, begins),
        last=np.where(newest >= 0, series.last[newest], np.nan),
    )


def plain(values: Array) -> list[float | None]:
    """Numbers as JSON has them, to five digits: more cannot be seen.

    >>> plain(np.array([0.123456789, np.nan]))
    [0.12346, None]
    """
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values.tolist()]


def cut(labels: Sequence[str]) -> list[str]:
    """Labels that leave a chart room and stay apart; nothing in them is markup.

    >>> cut(["a<b", "x" * 40, "x" * 41])[1:]
    ['xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… (2)']
    """
    out: list[str] = []
    for label in (" ".join(label.split()) for label in labels):
        short = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
        name, again = short, 1
        while html.escape(name, quote=False) in out:
            again += 1
            name = f"{short} ({again})"
        out.append(html.escape(name, quote=False))
    return out


def _scale(unit: str) -> tuple[float, str, str]:
    """What to multiply values with to draw them, the unit then, and how a number is written."""
    if unit == "s":
        return 1e3, "ms", ".4g"
    if unit == "1":
        return 1.0, "", ".3~%"
    return 1.0, unit, ".4~g"
