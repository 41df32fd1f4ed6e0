"""From events to statistics: pure functions, shared by the Metric classes and by the monitor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS, Store
from cmr_monitor_callbacks.histogram import BUCKETS, bucket_counts
from cmr_monitor_callbacks.packed import ROW, Packed

Array = NDArray[np.float64]


class Folder(Protocol):
    """What a Metric class says of its events; see `LayeredMetric`."""

    component: str
    record: str

    @staticmethod
    def columns(events: Array) -> Array:
        """Statistics of each event."""
        ...

    @staticmethod
    def timed(events: Array) -> Sequence[tuple[Array, Array | None]]:
        """Durations of each event."""
        ...


@dataclass(frozen=True)
class Rows:
    """Where a component's statistics stand in `Packed`, and how many of each store it has."""

    start: int
    counts: int
    sums: int
    gauges: int
    peaks: int

    @classmethod
    def of(cls, component: str) -> Rows:
        """Rows of a component: contiguous, in the order of the stores."""
        own = [s for s in STATISTICS if s.component == component]
        order = [ROW[s.name] for s in own]
        stores = list(Store)
        ranks = [stores.index(s.store) for s in own]
        assert order == list(range(order[0], order[0] + len(own))) and ranks == sorted(ranks)
        return cls(order[0], *(sum(s.store is store for s in own) for store in stores))


ROWS: Final[dict[str, Rows]] = {name: Rows.of(name) for name in {s.component for s in STATISTICS}}


def _timer_rows(component: str) -> slice:
    rows = [i for i, (owner, _) in enumerate(TIMERS) if owner == component]
    return slice(rows[0], rows[-1] + 1) if rows else slice(0)


TIMER_ROWS: Final[dict[str, slice]] = {name: _timer_rows(name) for name in ROWS}


@dataclass(frozen=True)
class Fold:
    """Statistics of some events of one kind, by layer.

    Attributes:
        adding: shape ``(counts + sums, width)``.
        samples: shape ``(statistics, width)``.
        gauges: shape ``(gauges, width)``, the last value of each; NaN without one.
        peaks: shape ``(peaks, width)``, the highest value of each; NaN without one.
        histograms: shape ``(timers, BUCKETS)``.
        extremes: shape ``(timers, 2)``.
    """

    rows: Rows
    adding: Array
    samples: Array
    gauges: Array
    peaks: Array
    histograms: NDArray[np.int64]
    extremes: Array

    @property
    def counts(self) -> Array:
        """The counts among ``adding``."""
        return self.adding[: self.rows.counts]

    @property
    def sums(self) -> Array:
        """The sums among ``adding``."""
        return self.adding[self.rows.counts :]


def fold(folder: Folder | type, events: Array, slots: NDArray[np.intp], width: int) -> Fold:
    """Fold events of one kind.

    Args:
        folder: the Metric class of the kind.
        events: shape ``(n, fields)``; NaN is no data.
        slots: shape ``(n,)``, the column of each event's layer.
        width: number of columns.
    """
    rows = ROWS[folder.component]  # type: ignore[union-attr]
    columns: Array = folder.columns(events)  # type: ignore[union-attr]
    of_layer = np.zeros((width, len(slots)))
    of_layer[slots, np.arange(len(slots))] = 1.0
    given = ~np.isnan(columns)
    samples = (of_layer @ given).T
    adding = rows.counts + rows.sums
    sums = (of_layer @ np.where(given[:, :adding], columns[:, :adding], 0.0)).T
    last = _last(columns[:, adding : adding + rows.gauges], slots, width)
    peaks = np.full((rows.peaks, width), np.nan)
    for row, column in enumerate(columns[:, adding + rows.gauges :].T):
        np.fmax.at(peaks[row], slots, column)
    timed: Sequence[tuple[Array, Array | None]] = folder.timed(events)  # type: ignore[union-attr]
    histograms = np.zeros((len(timed), BUCKETS), dtype=np.int64)
    extremes = np.empty((len(timed), 2))
    for row, (seconds, weights) in enumerate(timed):
        extremes[row] = _fold_times(histograms[row], seconds, weights)
    return Fold(rows, sums, samples, last, peaks, histograms, extremes)


def fold_into(
    packed: Packed, folder: Folder | type, events: Array, slots: NDArray[np.intp]
) -> None:
    """Fold events of one kind into `Packed`: the monitor's way, once per window."""
    folded = fold(folder, events, slots, packed.width)
    rows = folded.rows
    start, added = rows.start, rows.start + rows.counts + rows.sums
    packed.values[start:added] += folded.adding
    packed.samples[start : start + len(folded.samples)] += folded.samples
    if rows.gauges:
        held = packed.values[added : added + rows.gauges]
        np.copyto(held, folded.gauges, where=~np.isnan(folded.gauges))
    if rows.peaks:
        peaks = packed.values[added + rows.gauges : added + rows.gauges + rows.peaks]
        np.fmax(peaks, folded.peaks, out=peaks)
    if len(folded.histograms):
        own = TIMER_ROWS[folder.component]  # type: ignore[union-attr]
        packed.histograms[own] += folded.histograms
        np.minimum(packed.extremes[own, 0], folded.extremes[:, 0], out=packed.extremes[own, 0])
        np.maximum(packed.extremes[own, 1], folded.extremes[:, 1], out=packed.extremes[own, 1])


def _last(columns: Array, slots: NDArray[np.intp], width: int) -> Array:
    """The last given value of each row and layer, NaN without one; shape ``(rows, width)``."""
    out = np.full((columns.shape[1], width), np.nan)
    for row, column in enumerate(columns.T):
        given = ~np.isnan(column)
        out[row, slots[given]] = column[given]  # numpy keeps the last of repeated indices
    return out


def _fold_times(
    histogram: NDArray[np.int64], seconds: Array, weights: Array | None
) -> tuple[float, float]:
    """Count durations into a histogram; their extremes."""
    given = ~np.isnan(seconds)
    if weights is not None:
        given &= weights > 0
        weights = weights[given]
    seconds = seconds[given]
    if not len(seconds):
        return math.inf, -math.inf
    histogram += bucket_counts(seconds, weights)
    return float(seconds.min()), float(seconds.max())
