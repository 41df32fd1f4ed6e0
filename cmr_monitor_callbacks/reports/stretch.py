"""The stretch of a run that a report is of, and the number that each series has over it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.history.series import statistics_of
from cmr_monitor_callbacks.layers import LayerId, layer_order


@dataclass(frozen=True)
class Stretch:
    """Windows of training.

    Attributes:
        series: those that have data in it.
        begin: step and time of its first window; None where it has no window.
        from_start: whether the run begins in it, so that a counter's first total is all its own.
    """

    series: Mapping[SeriesKey, Series]
    begin: tuple[int, float] | None = None
    from_start: bool = True

    @property
    def whole(self) -> dict[str, Series]:
        """Series of the model as a whole, by metric."""
        return {k.name: one for k, one in self.series.items() if k.layer is None and k.rank is None}

    @property
    def longest(self) -> Series | None:
        """The series that has data in most windows."""
        return max(self.whole.values(), key=lambda one: float(one.count.sum()), default=None)

    @property
    def steps(self) -> int:
        """Steps that what counters added belongs to."""
        if self.longest is None or self.begin is None:
            return 0
        last = int(self.longest.step[-1])
        return last + 1 if self.from_start else last - self.begin[0]

    def told(self) -> dict[str, Any]:
        """Its ends and its number of windows, as reports have them."""
        if self.longest is None or self.begin is None:
            return dict.fromkeys(("from", "to", "first_step", "last_step")) | {"windows": 0}
        return {
            "from": iso(self.begin[1]),
            "to": iso(float(self.longest.time[-1])),
            "first_step": self.begin[0],
            "last_step": int(self.longest.step[-1]),
            "windows": int(self.longest.count.sum()),
        }


def read_stretch(
    history: RunHistory, bounds: tuple[float, float], *, max_points: int | None = None
) -> Stretch:
    """Read all series of training between two times.

    Args:
        history: of the run.
        bounds: seconds since the Unix epoch.
        max_points: see `RunHistory.series`.

    Raises:
        HistoryError: the store cannot be read.
    """
    found = history.many(history.list_series("train"), bounds, max_points=max_points)
    stretch = Stretch({key: one for key, one in found.items() if len(one)})
    longest, first = stretch.longest, history.first("train")
    if longest is None or first is None:
        return stretch
    if first[1] < bounds[0]:
        begin = int(longest.step[0]), float(longest.time[0])
        return Stretch(stretch.series, begin, from_start=False)
    # A run that was resumed elsewhere, or whose oldest windows are gone, does not begin at step 0.
    windows = float(longest.count[1:].sum())
    length = (int(longest.step[-1]) - int(longest.step[0])) / windows if windows else math.inf
    return Stretch(stretch.series, first, from_start=first[0] + 1 <= 2 * length)


def value_over(series: Series, from_start: bool) -> float:
    """A number of a whole stretch: what a counter added, a gauge's newest, else the windows' mean.

    Args:
        series: of the stretch.
        from_start: whether the stretch begins where the run does. Else a counter's first point
            adds nothing: what it stood at before is not known.
    """
    kind = BY_NAME[series.key.name].kind
    if kind is Kind.COUNTER:
        return float(np.nansum(series.added[0 if from_start else 1 :]))
    if kind in (Kind.GAUGE, Kind.SCORE):
        return newest(series)
    return statistics_of(series).get("mean", math.nan)


def newest(series: Series) -> float:
    """The newest number; NaN where there is none."""
    given = ~np.isnan(series.last)
    return float(series.last[given][-1]) if given.any() else math.nan


def metric(series: Series, stretch: Stretch) -> dict[str, Any]:
    """What reports tell of a number: its value over the stretch, and how it varied."""
    info = BY_NAME[series.key.name]
    out: dict[str, Any] = {
        "value": value_over(series, stretch.from_start),
        "unit": info.unit,
        "component": info.component,
        "polarity": info.polarity.value,
        "over": "mean of the windows",
    }
    if info.kind is Kind.COUNTER:
        out |= {"over": "range", "total": newest(series)}
        return finite(out)
    if info.kind in (Kind.GAUGE, Kind.SCORE):
        out["over"] = "now"
    known = statistics_of(series)
    out |= {name: known.get(name, math.nan) for name in ("min", "p50", "p95", "max", "last")}
    return finite(out)


def layer_names(layers: Iterable[LayerId]) -> dict[LayerId, str]:
    """Layers as text, in order: JSON's names are text. A "4" beside a 4 keeps its quotes.

    >>> layer_names(["b", "4", 4])
    {4: '4', '4': '"4"', 'b': 'b'}
    """
    out: dict[LayerId, str] = {}
    for layer in sorted(layers, key=layer_order):
        out[layer] = json.dumps(layer) if str(layer) in out.values() else str(layer)
    return out


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows neither NaN nor infinity: they are None.

    >>> finite({"a": float("nan"), "b": 1.0})
    {'a': None, 'b': 1.0}
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def iso(time: float, unit: str = "milliseconds") -> str:
    """Seconds since the Unix epoch as ISO 8601, in UTC, down to that unit.

    >>> iso(0.5)
    '1970-01-01T00:00:00.500Z'
    """
    text = datetime.fromtimestamp(time, timezone.utc).isoformat(timespec=unit)
    return text.replace("+00:00", "Z")
