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
from cmr_monitor_callbacks.layer_histograms import LAYER_TIMERS, LayerHistograms

Array = NDArray[np.float64]

ROW: Final[dict[str, int]] = {s.name: i for i, s in enumerate(STATISTICS)}
"""Row of each statistic."""
TIMER_ROW: Final[dict[str, int]] = {name: i for i, (_, name) in enumerate(TIMERS)}
"""Row of each timer's histogram."""
METRIC_ROW: Final[dict[str, int]] = {m.name: i for i, m in enumerate(METRICS)}
"""Row of each metric in `read`'s result."""

_ROWS = len(STATISTICS)
_GAUGE_ROWS = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
_GAUGES = slice(_GAUGE_ROWS[0], _GAUGE_ROWS[-1] + 1)
"""Rows of the gauges: only the buffer has any, so they lie together."""


@dataclass
class Packed:
    """Statistics of one stretch of steps, of one stage, on one rank or over all.

    Attributes:
        values: shape ``(statistics, width)``, float64: counts (exact to 2^53) and sums, 0 where
            nothing came; gauges, NaN where nothing came.
        samples: shape ``(statistics, width)``, float64 whole numbers: samples that each row got.
        histograms: shape ``(timers, BUCKETS)``, int64.
        extremes: shape ``(timers, 2)``, float64: least and greatest seconds; inf and -inf
            without data.
        by_layer: histograms of each layer, as wide; None where nobody asks for them.
    """

    values: Array
    samples: Array
    histograms: NDArray[np.int64]
    extremes: Array
    by_layer: LayerHistograms | None = None

    @classmethod
    def empty(cls, width: int, *, by_layer: bool = False) -> Packed:
        """Nothing seen yet, for ``width`` columns; ``by_layer``: with histograms of each."""
        values = np.zeros((_ROWS, width))
        values[_GAUGES] = np.nan
        extremes = np.empty((len(TIMERS), 2))
        extremes[:] = (math.inf, -math.inf)
        histograms = np.zeros((len(TIMERS), BUCKETS), dtype=np.int64)
        layers = LayerHistograms.empty(width) if by_layer else None
        return cls(values, np.zeros((_ROWS, width)), histograms, extremes, layers)

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
            if self.by_layer is not None:
                self.by_layer = self.by_layer.widened(width)

    def add(self, later: Packed) -> None:
        """Merge over steps: counts and sums add, gauges take the later value where there is one."""
        self.widen(later.width)
        w = later.width
        gauges = self.values[_GAUGES].copy()
        self.values[:, :w] += later.values
        self.values[_GAUGES] = gauges
        self.take_gauges(later)
        self.samples[:, :w] += later.samples
        self.histograms += later.histograms
        np.minimum(self.extremes[:, 0], later.extremes[:, 0], out=self.extremes[:, 0])
        np.maximum(self.extremes[:, 1], later.extremes[:, 1], out=self.extremes[:, 1])
        if later.by_layer is not None:
            self.by_layer = self.by_layer or LayerHistograms.empty(self.width)
            self.by_layer.add(later.by_layer)

    def take_gauges(self, other: Packed) -> None:
        """Take over the gauges that another stretch knows; the rest stays."""
        new = other.values[_GAUGES]
        np.copyto(self.values[_GAUGES, : other.width], new, where=~np.isnan(new))

    def moved(self, columns: Sequence[int], width: int) -> Packed:
        """The same statistics with column ``i`` at ``columns[i]`` of ``width`` columns."""
        out = Packed.empty(width)
        out.values[:, list(columns)] = self.values
        out.samples[:, list(columns)] = self.samples
        out.histograms, out.extremes = self.histograms.copy(), self.extremes.copy()
        out.by_layer = None if self.by_layer is None else self.by_layer.moved(columns, width)
        return out

    def copy(self) -> Packed:
        """An independent copy."""
        return Packed(
            self.values.copy(),
            self.samples.copy(),
            self.histograms.copy(),
            self.extremes.copy(),
            None if self.by_layer is None else self.by_layer.copy(),
        )

    def state(self) -> dict[str, Any]:
        """Plain lists by statistic name, for a checkpoint; later versions may add rows."""
        layers = {} if self.by_layer is None else {"by_layer": self.by_layer.state()}
        return {
            **layers,
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
        if "by_layer" in state:
            packed.by_layer = LayerHistograms.from_state(state["by_layer"], width)
        return packed


def _index(kinds: tuple[Kind, ...]) -> tuple[Any, Any, Any]:
    """Rows of the metrics of these kinds, and rows of what they divide in ``[values; samples]``."""
    metrics = [i for i, m in enumerate(METRICS) if m.kind in kinds]
    upper = [ROW[METRICS[i].numerator] for i in metrics]
    lower = [
        _ROWS + 1 + ROW[under[1:]] if under.startswith("#") else ROW[under]
        for under in (METRICS[i].denominator for i in metrics)
    ]
    return np.array(metrics), np.array(upper), np.array(lower)


_REJECTED = _ROWS  # one row more than is stored: states_captured - states_stored
_COUNTERS = [i for i, m in enumerate(METRICS) if m.kind is Kind.COUNTER]
_COUNTER_ROWS = np.array([ROW.get(METRICS[i].numerator, _REJECTED) for i in _COUNTERS])
COUNTERS: Final[tuple[str, ...]] = tuple(METRICS[i].name for i in _COUNTERS)
"""Metrics that `Reader.counters` gives, in its order."""
_ERROR_RATE = METRIC_ROW["error_rate"]
_ERRORS = [ROW["error_count"], ROW["operations"]]
_CAPTURED, _STORED, _COUNTED = (
    ROW[name] for name in ("states_captured", "states_stored", "operations")
)
_GAUGE_METRICS = [
    METRIC_ROW[name] for name in ("total_entries", "capacity", "utilization_rate", "memory_size_mb")
]
_EVICTED, _HELD, _TURNOVER = (
    METRIC_ROW[name] for name in ("eviction_count", "total_entries", "turnover")
)
_RATIOS, _UPPER, _LOWER = _index((Kind.RATIO, Kind.MEAN))
_QUANTILES = [i for i, m in enumerate(METRICS) if m.kind is Kind.QUANTILE]
_QS = np.array(sorted({METRICS[i].quantile for i in _QUANTILES}))
_QUANTILE_AT = (
    [TIMER_ROW[METRICS[i].numerator] for i in _QUANTILES],
    [int(np.searchsorted(_QS, METRICS[i].quantile)) for i in _QUANTILES],
)
_OF_LAYERS = [METRICS[i].numerator in LAYER_TIMERS for i in _QUANTILES]
_LAYER_QUANTILES = [i for i, of in zip(_QUANTILES, _OF_LAYERS, strict=True) if of]
_LAYER_QUANTILE_AT = tuple(
    [at for at, of in zip(places, _OF_LAYERS, strict=True) if of] for places in _QUANTILE_AT
)
_OPERATIONS = np.array(
    [
        ROW[name]
        for name in ("capture_calls", "reconstruction_calls", "total_retrievals", "forward_passes")
    ]
)


class Reader:
    """Reads metrics out of packed statistics; what only depends on which numbers exist is kept.

    >>> run = Packed.empty(1)
    >>> float(Reader().read(run, run)[METRIC_ROW["capture_efficiency"], 0])
    nan
    """

    def __init__(self) -> None:
        self._seen = b""
        self._usable: Array = np.empty(0)
        self._missing: NDArray[np.bool_] = np.empty(0, dtype=bool)
        self._both: Array = np.empty(0)
        self._counted: NDArray[np.bool_] | None = None

    def read(self, packed: Packed, run: Packed) -> Array:
        """Every metric, for the model as a whole and for each layer.

        Args:
            packed: the statistics of a window, or of the run itself.
            run: the run so far, of the same width. What was ever seen in it and got nothing in this
                window is 0; what was never seen is NaN.

        Returns:
            shape ``(metrics, width)``; column 0 is the whole, rows are ``METRIC_ROW``; NaN is no
            data.
        """
        self._plan(run)
        return self._table(packed, run)

    def read_both(self, packed: Packed, run: Packed) -> tuple[Array, Array]:
        """What `read` and `counters` give, for a window that is part of the run."""
        self._plan(run)
        return self._table(packed, run), self._counters(self._with_derived(run.values))

    def _table(self, packed: Packed, run: Packed) -> Array:
        values = self._with_derived(packed.values)
        out = np.full((len(METRICS), packed.width), np.nan)
        out[_COUNTERS] = self._counters(values)
        both = np.concatenate((values, packed.samples))
        upper, lower = both[_UPPER] * self._usable, both[_LOWER] * self._usable
        # the whole is a ratio of sums, over the columns that give both
        upper[:, 0], lower[:, 0] = upper.sum(axis=1), lower.sum(axis=1)
        ratios = np.full_like(upper, np.nan)
        np.divide(upper, lower, out=ratios, where=lower > 0)
        out[_RATIOS] = ratios
        # forward passes belong to no layer: the whole's errors stand over the whole's operations
        errors, operations = values[_ERRORS].sum(axis=1).tolist()
        out[_ERROR_RATE, 0] = errors / operations if operations > 0 else math.nan
        _read_gauges(packed.values, run.values[ROW["entries_seen"]], out)
        np.divide(out[_EVICTED], out[_HELD], out=out[_TURNOVER], where=out[_HELD] > 0)
        out[_QUANTILES, 0] = quantiles(packed.histograms, _QS, packed.extremes)[_QUANTILE_AT]
        if packed.by_layer is not None:
            timers, qs = _LAYER_QUANTILE_AT
            out[_LAYER_QUANTILES, 1:] = packed.by_layer.quantiles(_QS)[timers, 1:, qs]
        return out

    def counters(self, run: Packed) -> Array:
        """The counters alone, rows in the order of `COUNTERS`."""
        self._plan(run)
        return self._counters(self._with_derived(run.values))

    def _counters(self, values: Array) -> Array:
        counters: Array = values[_COUNTER_ROWS]
        counters[:, 0] = counters.sum(axis=1)
        counters[self._missing] = np.nan
        return counters

    def _with_derived(self, values: Array) -> Array:
        """Values without gauges, and two rows that follow from others; 0 where never seen."""
        out = np.empty((_ROWS + 1, values.shape[1]))
        out[:_ROWS] = values
        out[_GAUGES] = 0.0
        out[_REJECTED] = (values[_CAPTURED] - values[_STORED]) * self._both
        # operations that could have failed, where nobody counted them for us
        operations = values[_OPERATIONS].sum(axis=0)
        if self._counted is not None:
            operations = np.where(self._counted, values[_COUNTED], operations)
        out[_COUNTED] = operations
        return out

    def _plan(self, run: Packed) -> None:
        seen = run.samples > 0
        key = seen.tobytes()
        if key == self._seen:
            return
        self._seen = key
        captured_and_stored = seen[_CAPTURED] & seen[_STORED]
        self._both = captured_and_stored.astype(np.float64)
        self._counted = seen[_COUNTED].copy() if seen[_COUNTED].any() else None
        seen = np.vstack((seen, captured_and_stored))
        seen[ROW["operations"]] |= seen[_OPERATIONS].any(axis=0)
        present = np.concatenate((seen, np.ones_like(run.samples, dtype=bool)))
        self._usable = (present[_UPPER] & present[_LOWER]).astype(np.float64)
        self._missing = ~seen[_COUNTER_ROWS]
        self._missing[:, 0] = self._missing.all(axis=1)


def read(packed: Packed, run: Packed) -> Array:
    """Every metric; see `Reader.read`."""
    return Reader().read(packed, run)


def read_counters(run: Packed) -> Array:
    """The counters alone; see `Reader.counters`."""
    return Reader().counters(run)


def _read_gauges(values: Array, held: Array, out: Array) -> None:
    """Entries, capacity, utilization and size; plain floats, for there are only a few."""
    entries = values[ROW["total_entries"]].tolist()
    capacity = values[ROW["capacity"]].tolist()
    sizes = [size / 2**20 for size in values[ROW["memory_bytes"]].tolist()]
    used = [e / c if c > 0 else math.nan for e, c in zip(entries, capacity, strict=True)]
    # the layers' own entries, or what the model as a whole said where no layer did
    total = _first_given(_sum(entries[1:]), entries[0])
    size = _first_given(_sum(sizes[1:]), sizes[0])
    limit = _whole_capacity(capacity, (held > 0).tolist())
    bounded = total
    if math.isnan(capacity[0]):
        pairs = zip(entries[1:], capacity[1:], strict=True)
        bounded = _sum([e for e, c in pairs if not math.isnan(c)])
    usage = bounded / limit if limit > 0 else math.nan
    out[_GAUGE_METRICS] = (
        [total, *entries[1:]],
        [limit, *capacity[1:]],
        [usage, *used[1:]],
        [size, *sizes[1:]],
    )


def _sum(numbers: Sequence[float]) -> float:
    """Sum of what is given; NaN without any."""
    given = [x for x in numbers if not math.isnan(x)]
    return math.fsum(given) if given else math.nan


def _first_given(first: float, second: float) -> float:
    return second if math.isnan(first) else first


def _whole_capacity(capacity: Sequence[float], held: Sequence[bool]) -> float:
    """min(the total limit, the sum of the limits of the layers that hold or have held an entry).

    A layer that held entries and names no limit makes that sum no bound: the total limit stands.
    """
    total, layers = capacity[0], capacity[1:]
    of_held = [c for c, was_held in zip(layers, held[1:], strict=True) if was_held]
    if not math.isnan(total) and any(math.isnan(c) for c in of_held):
        return total
    limit = _first_given(_sum(of_held), _sum(layers))
    return total if math.isnan(limit) else (limit if math.isnan(total) else min(limit, total))
