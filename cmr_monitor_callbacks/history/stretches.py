"""Windows and their summaries as they lie in the store, and which of them to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.history.blocks import TIERS, floats, integers
from cmr_monitor_callbacks.history.columns import Array

LAST: Final = 6
"""Of the columns of a point: step, time, value, count, minimum, maximum, last, windows."""
Rows = Callable[..., list[tuple[Any, ...]]]


class Stretch:
    """Windows or summaries that lie together in the store."""

    session: int
    step: NDArray[np.int64]
    time: Array
    keep: NDArray[np.bool_]

    def read(self, rows: Rows, series: Sequence[int]) -> dict[int, list[Array]]:
        """Columns of each series that is in it, of the points to be kept."""
        raise NotImplementedError


class Block(Stretch):
    """A packed block of some tier."""

    def __init__(self, row: tuple[Any, ...]) -> None:
        _, self.tier, self.id, self.session, self.rows, _, steps, times = row
        self.step, self.time = integers(steps), floats(times)
        self.keep = np.ones(self.rows, dtype=bool)

    def read(self, rows: Rows, series: Sequence[int]) -> dict[int, list[Array]]:
        """See `Stretch.read`."""
        if len(series) == 1:
            query = "SELECT series, data FROM columns WHERE series = ? AND block = ?"
            found: dict[int, bytes] = dict(rows(query, (series[0], self.id)))
        else:
            found = dict(rows("SELECT series, data FROM columns WHERE block = ?", (self.id,)))
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
            out[number] = [column[self.keep] for column in (self.step, self.time, *parts, size)]
        return out


class Windows(Stretch):
    """Windows that are not packed yet, of one session and layout."""

    def __init__(self, group: Sequence[tuple[Any, ...]]) -> None:
        self.session, self.layout = group[0][1], group[0][4]
        self.step = np.array([row[2] for row in group], dtype=np.int64)
        self.time = np.array([row[3] for row in group])
        self._data = b"".join(row[5] for row in group)
        self.keep = np.ones(len(group), dtype=bool)

    def read(self, rows: Rows, series: Sequence[int]) -> dict[int, list[Array]]:
        """See `Stretch.read`."""
        (found,) = rows("SELECT series FROM layouts WHERE id = ?", (self.layout,))
        ids = np.frombuffer(found[0], dtype="<i4").tolist()
        table = np.frombuffer(self._data, dtype="<f8").reshape(len(self.step), len(ids))
        at = {number: i for i, number in enumerate(ids)}
        nothing, one = np.full(len(self.step), np.nan), np.ones(len(self.step))
        out = {}
        for number in series:
            values = table[:, at[number]] if number in at else nothing
            parts = [values, (~np.isnan(values)).astype(float), values, values, values]
            out[number] = [column[self.keep] for column in (self.step, self.time, *parts, one)]
        return out


def grouped(rows: Sequence[tuple[Any, ...]]) -> list[tuple[int, Windows]]:
    """Windows that follow each other, of one session and layout."""
    out: list[tuple[int, Windows]] = []
    group: list[tuple[Any, ...]] = []
    for row in rows:
        if group and (row[1], row[4]) != (group[-1][1], group[-1][4]):
            out.append((group[0][0], Windows(group)))
            group = []
        group.append(row)
    if group:
        out.append((group[0][0], Windows(group)))
    return out


def tier_for(packed: int, plain: int, max_points: int | None) -> int:
    """The finest tier of which there are not too many points."""
    for tier in TIERS:
        if max_points is None or packed / 10**tier + plain <= max_points:
            return tier
    return TIERS[-1]
