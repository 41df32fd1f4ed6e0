"""Windows and their summaries as they lie in the store, and which of them to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.history.blocks import TIERS, floats, integers, last_of_each, roll_up
from cmr_monitor_callbacks.history.columns import Array

LAST: Final = 6
"""Of the columns of a point: step, time, value, count, minimum, maximum, last, windows."""
BLOCK_ROW: Final = (
    "first_window, tier, id, session, rows, first_step, last_step, first_time, last_time"
)
WINDOW_ROW: Final = "id, session, step, time, layout, data"
_END: Final = np.iinfo(np.int64).max
Rows = Callable[..., list[tuple[Any, ...]]]


class Stretch:
    """Windows or summaries that lie together in the store; read when they are first looked at.

    Attributes:
        session: that wrote them.
        spans: first and last step, first and last time.
        step: shape ``(points,)``, the last step of each.
        time: shape ``(points,)``, seconds since the Unix epoch.
    """

    session: int
    spans: tuple[int, int, float, float]
    _before: int = _END
    _bounds: tuple[float, float] = (-math.inf, math.inf)

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """See above."""
        raise NotImplementedError

    @cached_property
    def time(self) -> Array:
        """See above."""
        raise NotImplementedError

    def limit(self, before: int | None, bounds: tuple[float, float]) -> None:
        """Keep the points of steps before that one, and within these times."""
        self._before, self._bounds = _END if before is None else before, bounds

    @cached_property
    def keep(self) -> NDArray[np.bool_] | slice:
        """Which points are to be kept."""
        _, last_step, first_time, last_time = self.spans
        low, high = self._bounds
        if last_step < self._before and low <= first_time and last_time <= high:
            return slice(None)
        keep: NDArray[np.bool_] = self.step < self._before
        return keep & (self.time >= low) & (self.time <= high)

    def newest(self, step: int) -> int | None:
        """The newest point to be kept that ended at or before a step."""
        if self.spans[0] > step:
            return None
        hits = np.zeros(len(self.step), dtype=bool)
        hits[self.keep] = True
        found = np.flatnonzero(hits & (self.step <= step))
        return int(found[-1]) if len(found) else None

    def read(self, series: Sequence[int]) -> dict[int, list[Array]]:
        """Columns of each series, of the points to be kept."""
        raise NotImplementedError


class Block(Stretch):
    """A packed block of some tier."""

    def __init__(self, row: tuple[Any, ...], rows: Rows) -> None:
        _, self.tier, self.id, self.session, self.rows, *spans = row
        self.spans = (spans[0], spans[1], spans[2], spans[3])
        self._rows = rows

    @cached_property
    def _ends(self) -> tuple[NDArray[np.int64], Array]:
        ((steps, times),) = self._rows("SELECT steps, times FROM blocks WHERE id = ?", (self.id,))
        return integers(steps), floats(times)

    @cached_property
    def step(self) -> NDArray[np.int64]:
        """See `Stretch`."""
        return self._ends[0]

    @cached_property
    def time(self) -> Array:
        """See `Stretch`."""
        return self._ends[1]

    def read(self, series: Sequence[int]) -> dict[int, list[Array]]:
        """See `Stretch.read`."""
        found: dict[int, bytes]
        if len(series) == 1:
            query = "SELECT series, data FROM columns WHERE series = ? AND block = ?"
            found = dict(self._rows(query, (series[0], self.id)))
        else:
            found = dict(self._rows("SELECT series, data FROM columns WHERE block = ?", (self.id,)))
        nothing, size = np.full(self.rows, np.nan), np.full(self.rows, 10.0**self.tier)
        out = {}
        for number in series:
            data = found.get(number)
            if data is None:
                parts = [nothing, np.zeros(self.rows), nothing, nothing, nothing]
            elif self.tier == 0:
                values = floats(data)
                parts = [values, (~np.isnan(values)).astype(float), values, values, values]
            else:
                count, mean, low, high, last = floats(data).reshape(5, self.rows)
                parts = [mean, count, low, high, last]
            columns: tuple[NDArray[Any], ...] = (self.step, self.time, *parts, size)
            out[number] = [column[self.keep] for column in columns]
        return out


class Windows(Stretch):
    """Windows that are not packed yet, of one session and layout; read as summaries of a tier."""

    def __init__(self, group: Sequence[tuple[Any, ...]], rows: Rows, tier: int = 0) -> None:
        self._size = 10**tier
        self.session, self.layout = group[0][1], group[0][4]
        self.step = np.array([row[2] for row in group], dtype=np.int64)
        self.time = np.array([row[3] for row in group])
        self.spans = (
            int(self.step.min()),
            int(self.step.max()),
            float(self.time.min()),
            float(self.time.max()),
        )
        self._data = b"".join(row[5] for row in group)
        self._rows = rows

    @cached_property
    def _table(self) -> tuple[dict[int, int], Array]:
        (found,) = self._rows("SELECT series FROM layouts WHERE id = ?", (self.layout,))
        ids = np.frombuffer(found[0], dtype="<i4").tolist()
        table = np.frombuffer(self._data, dtype="<f8").reshape(len(self.step), len(ids))
        return {number: i for i, number in enumerate(ids)}, table

    def read(self, series: Sequence[int]) -> dict[int, list[Array]]:
        """See `Stretch.read`."""
        at, table = self._table
        nothing = np.full(len(self.step), np.nan)
        out = {}
        for number in series:
            values = table[:, at[number]] if number in at else nothing
            out[number] = self._points(values[self.keep])
        return out

    def _points(self, values: Array) -> list[Array]:
        """Columns of the windows' values, or of their summaries."""
        step, time = self.step[self.keep], self.time[self.keep]
        if self._size == 1 or len(values) == 0:
            given = (~np.isnan(values)).astype(float)
            return [step, time, values, given, values, values, values, np.ones(len(values))]
        found = roll_up(values, self._size)
        size = np.full(len(found.mean), float(self._size))
        size[-1] = len(values) - self._size * (len(size) - 1)
        return [
            last_of_each(step, self._size),
            last_of_each(time, self._size),
            found.mean,
            found.windows,
            found.minimum,
            found.maximum,
            found.last,
            size,
        ]


def grouped(
    found: Sequence[tuple[Any, ...]], rows: Rows, tier: int = 0
) -> list[tuple[int, Windows]]:
    """Windows that follow each other, of one session and layout."""
    out: list[tuple[int, Windows]] = []
    group: list[tuple[Any, ...]] = []
    for row in found:
        if group and (row[1], row[4]) != (group[-1][1], group[-1][4]):
            out.append((group[0][0], Windows(group, rows, tier)))
            group = []
        group.append(row)
    if group:
        out.append((group[0][0], Windows(group, rows, tier)))
    return out


def tier_for(packed: int, plain: int, max_points: int | None) -> int:
    """The finest tier of which there are not too many points.

    Windows that are not packed yet are summarised likewise: points stand for about as many windows
    each, so that the newest part of a run does not weigh more.

    >>> tier_for(9000, 1500, 2000), tier_for(0, 1500, 2000), tier_for(9000, 1500, None)
    (1, 0, 0)
    """
    for tier in TIERS:
        if max_points is None or (packed + plain) / 10**tier <= max_points:
            return tier
    return TIERS[-1]
