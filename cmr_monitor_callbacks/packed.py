"""Packed statistics of one window or of a run, and how metrics are read out of them.

`Packed` is what a window is between the Metric classes and the Snapshot: a handful of arrays whose
rows are ``catalogue.STATISTICS`` and whose columns are a `Layout`'s. Adding a window to a run adds
arrays; reading all metrics is a few divisions of whole arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import METRICS, STATISTICS, TIMERS, Kind, Store
from cmr_monitor_callbacks.histogram import BUCKETS, quantiles

Array = NDArray[np.float64]

ROW: Final[dict[str, int]] = {s.name: i for i, s in enumerate(STATISTICS)}
"""Row of each statistic."""
TIMER_ROW: Final[dict[str, int]] = {name: i for i, (_, name) in enumerate(TIMERS)}
"""Row of each timer's histogram."""
METRIC_ROW: Final[dict[str, int]] = {m.name: i for i, m in enumerate(METRICS)}
"""Row of each metric in `read`'s result."""

_ROWS = len(STATISTICS)
_STORES = np.array([s.store.value for s in STATISTICS])
_GAUGES = np.flatnonzero(_STORES == Store.GAUGE.value)
_PEAKS = np.flatnonzero(_STORES == Store.PEAK.value)
_HELD = np.concatenate((_GAUGES, _PEAKS))
_IS_HELD = np.isin(np.arange(_ROWS), _HELD)[:, None]
_ADDING = np.flatnonzero((_STORES == Store.COUNT.value) | (_STORES == Store.SUM.value))


@dataclass
class Packed:
    """Statistics of one stretch of steps, of one stage, on one rank or over all.

    Attributes:
        values: shape ``(statistics, width)``, float64: counts (exact to 2^53) and sums, 0 where
            nothing came; gauges and peaks, NaN where nothing came.
        samples: shape ``(statistics, width)``, float64 whole numbers: how many samples each row got.
        histograms: shape ``(timers, BUCKETS)``, int64.
        extremes: shape ``(timers, 2)``, float64: least and greatest seconds; inf and -inf without data.
    """

    values: Array
    samples: Array
    histograms: NDArray[np.int64]
    extremes: Array

    @classmethod
    def empty(cls, width: int) -> Packed:
        """Nothing seen yet, for ``width`` columns."""
        values = np.zeros((_ROWS, width))
        values[_GAUGES] = np.nan
        values[_PEAKS] = np.nan
        extremes = np.empty((len(TIMERS), 2))
        extremes[:] = (math.inf, -math.inf)
        histograms = np.zeros((len(TIMERS), BUCKETS), dtype=np.int64)
        return cls(values, np.zeros((_ROWS, width)), histograms, extremes)

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    def widen(self, width: int) -> None:
        """Make room for layers that arrived later; no column moves."""
        if width > self.width:
            wider = Packed.empty(width)
            wider.values[:, : self.width] = self.values
            wider.samples[:, : self.width] = self.samples
            self.values, self.samples = wider.values, wider.samples

    def add(self, later: Packed) -> None:
        """Merge over steps: counts and sums add, gauges take the later value where there is one."""
        self.widen(later.width)
        w = later.width
        self.values[_ADDING, :w] += later.values[_ADDING]
        self.samples[:, :w] += later.samples
        new = later.values[_GAUGES]
        old = self.values[_GAUGES, :w]
        self.values[_GAUGES, :w] = np.where(np.isnan(new), old, new)
        self.values[_PEAKS, :w] = np.fmax(self.values[_PEAKS, :w], later.values[_PEAKS])
        self.histograms += later.histograms
        np.minimum(self.extremes[:, 0], later.extremes[:, 0], out=self.extremes[:, 0])
        np.maximum(self.extremes[:, 1], later.extremes[:, 1], out=self.extremes[:, 1])

    def take_gauges(self, other: Packed) -> None:
        """Take over what another stretch knows of gauges and peaks; the rest stays."""
        self.widen(other.width)
        w = other.width
        new, old = other.values[_HELD], self.values[_HELD, :w]
        self.values[_HELD, :w] = np.where(np.isnan(new), old, new)

    def moved(self, columns: Sequence[int], width: int) -> Packed:
        """The same statistics with column ``i`` at ``columns[i]`` of ``width`` columns."""
        out = Packed.empty(width)
        out.values[:, list(columns)] = self.values
        out.samples[:, list(columns)] = self.samples
        out.histograms, out.extremes = self.histograms.copy(), self.extremes.copy()
        return out

    def copy(self) -> Packed:
        """An independent copy."""
        return Packed(
            self.values.copy(), self.samples.copy(), self.histograms.copy(), self.extremes.copy()
        )

    def state(self) -> dict[str, Any]:
        """Plain lists by statistic name, for a checkpoint: survives rows added in later versions."""
        return {
            "values": {s.name: self.values[i].tolist() for i, s in enumerate(STATISTICS)},
            "samples": {s.name: self.samples[i].tolist() for i, s in enumerate(STATISTICS)},
            "histograms": {name: self.histograms[i].tolist() for name, i in TIMER_ROW.items()},
            "extremes": {name: self.extremes[i].tolist() for name, i in TIMER_ROW.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], width: int) -> Packed:
        """The inverse of `state`; names that this version does not know are left out."""
        packed = cls.empty(width)
        for name, row in ROW.items():
            if name in state["values"]:
                packed.values[row] = state["values"][name]
                packed.samples[row] = state["samples"][name]
        for name, row in TIMER_ROW.items():
            if name in state["histograms"]:
                packed.histograms[row] = state["histograms"][name]
                packed.extremes[row] = state["extremes"][name]
        return packed


def _index(kinds: tuple[Kind, ...]) -> tuple[Any, Any, Any]:
    """Rows of the metrics of these kinds, and rows of what they divide in ``[values; samples]``."""
    metrics = [i for i, m in enumerate(METRICS) if m.kind in kinds]
    upper = [ROW[METRICS[i].numerator] for i in metrics]
    lower = [
        _ROWS + ROW[under[1:]] if under.startswith("#") else ROW[under]
        for under in (METRICS[i].denominator for i in metrics)
    ]
    return np.array(metrics), np.array(upper), np.array(lower)


_COUNTERS = [i for i, m in enumerate(METRICS) if m.kind is Kind.COUNTER and m.numerator in ROW]
_COUNTER_ROWS = np.array([ROW[METRICS[i].numerator] for i in _COUNTERS])
_RATIOS, _UPPER, _LOWER = _index((Kind.RATIO, Kind.MEAN))
_QUANTILES = [i for i, m in enumerate(METRICS) if m.kind is Kind.QUANTILE]
_QS = np.array(sorted({METRICS[i].quantile for i in _QUANTILES}))
_QUANTILE_AT = (
    [TIMER_ROW[METRICS[i].numerator] for i in _QUANTILES],
    [int(np.searchsorted(_QS, METRICS[i].quantile)) for i in _QUANTILES],
)
_OPERATIONS = np.array(
    [
        ROW[name]
        for name in ("capture_calls", "reconstruction_calls", "total_retrievals", "forward_passes")
    ]
)


def read(packed: Packed, seen: Array) -> Array:
    """Every metric, for the model as a whole and for each layer.

    Args:
        packed: the statistics of a window or of a run.
        seen: shape ``(statistics, width)``: samples over the run so far. What was ever seen and got
            nothing in this window is 0; what was never seen is NaN.

    Returns:
        shape ``(metrics, width)``; column 0 is the whole, rows are ``METRIC_ROW``; NaN is no data.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where((seen > 0) | _IS_HELD, packed.values, np.nan)
        _fill_operations(values)
        out = np.full((len(METRICS), packed.width), np.nan)
        out[_COUNTERS, 1:] = values[_COUNTER_ROWS, 1:]
        out[_COUNTERS, 0] = _total(values[_COUNTER_ROWS])
        _read_rejected(values, out)
        _read_ratios(values, packed.samples, out)
        _read_gauges(values, out)
        out[_QUANTILES, 0] = quantiles(packed.histograms, _QS, packed.extremes)[_QUANTILE_AT]
    return out


def _total(rows: Array) -> Array:
    """Sum over columns of what there is; NaN where there is nothing."""
    absent = np.isnan(rows)
    sums: Array = np.where(absent, 0.0, rows).sum(axis=1)
    sums[absent.all(axis=1)] = np.nan
    return sums


def _fill_operations(values: Array) -> None:
    """Operations that could have failed, where nobody counted them for us."""
    operations = ROW["operations"]
    absent = np.isnan(values[operations])
    rows = values[_OPERATIONS]
    missing = np.isnan(rows)
    total = np.where(missing, 0.0, rows).sum(axis=0)
    total[missing.all(axis=0)] = np.nan
    values[operations] = np.where(absent, total, values[operations])


def _read_rejected(values: Array, out: Array) -> None:
    rejected = values[ROW["states_captured"]] - values[ROW["states_stored"]]
    row = METRIC_ROW["states_rejected"]
    out[row] = rejected
    out[row, 0] = _total(rejected[None])[0]


def _read_ratios(values: Array, samples: Array, out: Array) -> None:
    both = np.concatenate((values, samples))
    upper, lower = both[_UPPER], both[_LOWER]
    out[_RATIOS] = np.where(lower > 0, upper / lower, np.nan)
    # the whole is a ratio of sums, over the columns that give both
    usable = ~(np.isnan(upper) | np.isnan(lower))
    top = np.where(usable, upper, 0.0).sum(axis=1)
    bottom = np.where(usable, lower, 0.0).sum(axis=1)
    out[_RATIOS, 0] = np.where(bottom > 0, top / bottom, np.nan)
    _read_error_rate(values, out)


def _read_error_rate(values: Array, out: Array) -> None:
    """Errors of the whole over operations of the whole: forward passes belong to no layer."""
    errors, operations = _total(values[[ROW["error_count"], ROW["operations"]]])
    out[METRIC_ROW["error_rate"], 0] = errors / operations if operations > 0 else math.nan


def _read_gauges(values: Array, out: Array) -> None:
    entries = values[ROW["total_entries"]]
    capacity = values[ROW["capacity"]]
    nbytes = values[ROW["memory_bytes"]]
    out[METRIC_ROW["total_entries"]] = entries
    out[METRIC_ROW["capacity"]] = capacity
    out[METRIC_ROW["memory_size_mb"]] = nbytes / 2**20
    usage = METRIC_ROW["utilization_rate"]
    out[usage] = np.where(capacity > 0, entries / capacity, np.nan)

    # the layers' own entries, or what the model as a whole said where no layer did
    held_by_layers = _total(entries[None, 1:])[0]
    total = entries[0] if math.isnan(held_by_layers) else held_by_layers
    sized = _total(nbytes[None, 1:])[0]
    limit = _whole_capacity(capacity, values[ROW["entries_peak"]])
    bounded = total
    if math.isnan(capacity[0]):
        bounded = _total(np.where(np.isnan(capacity), np.nan, entries)[None, 1:])[0]
    out[METRIC_ROW["total_entries"], 0] = total
    out[METRIC_ROW["memory_size_mb"], 0] = (nbytes[0] if math.isnan(sized) else sized) / 2**20
    out[METRIC_ROW["capacity"], 0] = limit
    out[usage, 0] = bounded / limit if limit > 0 else math.nan


def _whole_capacity(capacity: Array, peak: Array) -> float:
    """min(the total limit, the sum of the limits of the layers that hold or have held an entry).

    A layer that held entries and names no limit makes that sum no bound: the total limit stands.
    """
    total = float(capacity[0])
    held = peak[1:] > 0
    if not math.isnan(total) and np.isnan(capacity[1:][held]).any():
        return total
    of_layers = np.where(held, capacity[1:], np.nan)
    if np.isnan(of_layers).all():
        of_layers = capacity[1:]
    return float(np.fmin(total, _total(of_layers[None])[0]))
