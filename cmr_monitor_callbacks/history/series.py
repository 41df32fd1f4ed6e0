"""What reading gives: one number over time, or all numbers of one window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM, canonical
from cmr_monitor_callbacks.history.columns import Array, SeriesKey
from cmr_monitor_callbacks.history.stretches import LAST
from cmr_monitor_callbacks.layers import LayerId, layer_tag


@dataclass(frozen=True, eq=False)
class Series:
    """One number over time. All arrays are of shape ``(points,)``, the oldest point first.

    Attributes:
        key: which it is.
        unit: of the values.
        step: last step of each point.
        time: the same, seconds since the Unix epoch.
        value: the window's value; of a summary of several windows their mean.
        count: windows with data in the point.
        minimum: the least of them.
        maximum: the greatest of them.
        last: the newest of them.
        windows: that the point stands for, with data or without: 1, 10, 100 or 1,000, fewer where
            a stretch ends.
    """

    key: SeriesKey
    unit: str
    step: NDArray[np.int64]
    time: Array
    value: Array
    count: Array
    minimum: Array
    maximum: Array
    last: Array
    windows: Array

    def __len__(self) -> int:
        return len(self.step)

    @property
    def added(self) -> Array:
        """What each point of a counter added to the one before; of the first its whole total.

        A counter that fell, because the totals began anew, added what it stands at. Points without
        data add nothing that is known (NaN), and the next one is compared with the last that had.
        """
        given = ~np.isnan(self.last)
        newest = np.maximum.accumulate(np.where(given, np.arange(len(self)), -1))
        earlier = np.concatenate(([-1], newest[:-1]))[: len(self)]
        before = np.where(earlier >= 0, self.last[earlier], 0.0)
        risen: Array = self.last - before
        return np.where(risen < 0, self.last, risen)

    @property
    def label(self) -> str:
        """Its name, with layer and rank as the tags have them."""
        return label_of(self.key)


@dataclass(frozen=True)
class Moment:
    """All numbers of one window; of an old one the newest of the windows summarised with it.

    Attributes:
        step: last step of the window.
        time: seconds since the Unix epoch.
        values: by series; none without data.
    """

    step: int
    time: float
    values: Mapping[SeriesKey, float]

    def value(self, name: str, layer: LayerId | None = None, rank: int | None = None) -> float:
        """One number; NaN without data."""
        stage = next(iter(self.values)).stage if self.values else "train"
        own = SeriesKey(stage, CUSTOM + name)
        found = own if own in self.values else SeriesKey(stage, canonical(name), layer, rank)
        return self.values.get(found, math.nan)


def label_of(key: SeriesKey) -> str:
    """A series as one text, as tags have it.

    >>> label_of(SeriesKey("train", "states_stored", 4))
    'states_stored/layer_04'
    """
    parts = [key.name]
    if key.layer is not None:
        parts.append(layer_tag(key.layer))
    if key.rank is not None:
        parts.append(f"rank_{key.rank:03d}")
    return "/".join(parts)


def statistics_of(series: Series) -> dict[str, float]:
    """Count, mean, std, min, max and quantiles of a series' windows.

    >>> from cmr_monitor_callbacks.history.columns import SeriesKey
    >>> one = np.ones(2)
    >>> series = Series(SeriesKey("train", "score"), "1", one.astype(int), *[one] * 7)
    >>> statistics_of(series)["mean"]
    1.0
    """
    given = ~np.isnan(series.value)
    if not given.any():
        return {"count": 0.0}
    values, count = series.value[given], series.count[given]
    # infinite values make infinite means, and both infinities none: as arithmetic has it
    with np.errstate(invalid="ignore", over="ignore"):
        mean = float((values * count).sum() / count.sum())
        spread = float(np.sqrt((count * (values - mean) ** 2).sum() / count.sum()))
        low, middle, high, top = _quantiles(values, count, (0.05, 0.5, 0.95, 0.99))
    return {
        "count": float(count.sum()),
        "mean": mean,
        "std": spread,
        "min": float(np.nanmin(series.minimum)),
        "p5": float(low),
        "p50": float(middle),
        "p95": float(high),
        "p99": float(top),
        "max": float(np.nanmax(series.maximum)),
        "last": float(series.last[given][-1]),
    }


def _quantiles(values: Array, count: Array, at: Sequence[float]) -> list[float]:
    """NumPy's quantiles of values of which each is there so many times."""
    order = np.argsort(values)
    ordered, ends = values[order], np.cumsum(count[order])
    places = np.array(at) * (ends[-1] - 1)
    first = np.floor(places)
    below = ordered[np.searchsorted(ends, first, side="right")]
    above = ordered[np.searchsorted(ends, np.ceil(places), side="right")]
    between = below != above  # an infinite one less itself is no number
    below[between] += ((above - below) * (places - first))[between]
    found: list[float] = below.tolist()
    return found


def put_together(key: SeriesKey, parts: Sequence[Sequence[Array]]) -> Series:
    """Stretches put together; what has no data before the first number is left out."""
    unit = BY_NAME[key.name].unit if key.name in BY_NAME else ""
    if not parts:
        empty = np.zeros(0)
        return Series(key, unit, empty.astype(np.int64), *[empty] * 7)
    columns = [np.concatenate([part[i] for part in parts]) for i in range(8)]
    if np.isnan(columns[LAST]).all():
        columns = [column[:0] for column in columns]
    return Series(key, unit, columns[0].astype(np.int64), *columns[1:])
