"""What the Metric classes share: packed states, one fold, one way to read them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cmr_monitor_callbacks.catalogue import (
    METRICS,
    RECORDS,
    STATISTICS,
    UNIT_INTERVAL,
    Kind,
    Store,
    timers_of,
)
from cmr_monitor_callbacks.histogram import BUCKETS, bucket_counts
from cmr_monitor_callbacks.layers import LayerId, Layout, layer_tag
from cmr_monitor_callbacks.packed import METRIC_ROW, ROW, TIMER_ROW, Packed, read

Array = NDArray[np.float64]
Values = float | int | Sequence[float | None] | NDArray[Any] | Tensor | None
"""One number, or one for each event; None or NaN is no data."""
Layers = Hashable | Sequence[Hashable] | None

_STORE = {s.name: s.store for s in STATISTICS}


def fold(columns: Array, slots: NDArray[np.intp], width: int) -> tuple[Array, NDArray[np.int64]]:
    """Sum events by layer.

    Args:
        columns: shape ``(events, statistics)``; NaN is no data.
        slots: shape ``(events,)``, the column of each event's layer.
        width: number of layer columns.

    Returns:
        sums and number of samples, each of shape ``(statistics, width)``.
    """
    rows = columns.shape[1]
    given = ~np.isnan(columns)
    index = (slots[:, None] * rows + np.arange(rows)).ravel()
    sums = np.bincount(index, np.where(given, columns, 0.0).ravel(), minlength=rows * width)
    samples = np.bincount(index[given.ravel()], minlength=rows * width)
    return sums.reshape(width, rows).T, samples.reshape(width, rows).T


def _last(columns: Array, slots: NDArray[np.intp], width: int) -> Array:
    """The last given value of each row and layer, NaN without one; shape ``(rows, width)``."""
    out = np.full((columns.shape[1], width), np.nan)
    for row, column in enumerate(columns.T):
        given = ~np.isnan(column)
        out[row, slots[given]] = column[given]  # numpy keeps the last of repeated indices
    return out


def _later(old: Tensor, new: Tensor) -> Tensor:
    return torch.where(torch.isnan(new), old, new)


def _sum_of_given(stacked: Tensor) -> Tensor:
    """Sum over ranks of gauges; NaN only where no rank has one."""
    absent = torch.isnan(stacked)
    return torch.where(absent.all(0), math.nan, torch.where(absent, 0.0, stacked).sum(0))


class LayeredMetric(Metric):
    """Base of the Metric classes: statistics of one component, per layer and for the whole.

    States (one column per layer, column 0 for events that belong to no layer):
        ``counts`` int64 and ``sums`` float64 of shape ``(statistics, 1 + layers)``, ``samples``
        int64 of the same width, ``gauges`` and ``peaks`` float64 (NaN: no data), ``histograms``
        int64 ``(timers, 514)``, ``lowest`` and ``highest`` float64 ``(timers,)``.

    Layers may be named at the start; an unknown one gets a column when it first comes. `reset`
    keeps the columns. Merging over steps (`merge_steps`: gauges take the later value) differs from
    merging over ranks (torchmetrics' own sync: gauges add). Ranks must hold the same layers in the
    same order for torchmetrics' sync; name them at the start.
    """

    full_state_update = True  # forward() must not merge steps with the reduction for ranks
    is_differentiable = False
    higher_is_better = None

    component: ClassVar[str]
    record: ClassVar[str]
    """Kind of event folded, a key of ``catalogue.RECORDS``."""
    borrowed: ClassVar[tuple[str, ...]] = ()
    """Statistics of another component, kept only so that this class serves alone."""
    rank_reduction: ClassVar[str | None] = "sum"

    counts: Tensor
    sums: Tensor
    samples: Tensor
    gauges: Tensor
    peaks: Tensor
    histograms: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, layers: Iterable[Hashable] = (), **kwargs: Any) -> None:
        """A metric without data.

        Args:
            layers: ids whose columns are made at once.
            kwargs: those of ``torchmetrics.Metric``.

        Raises:
            LayerError: two ids would be shown under the same name.
        """
        super().__init__(**kwargs)
        self.layout = Layout(layers)
        own = [s.name for s in STATISTICS if s.component == self.component]
        names = (*own, *self.borrowed)
        self._rows = {store: [n for n in names if _STORE[n] is store] for store in Store}
        self._order = [n for store in Store for n in self._rows[store]]
        self._own = [n for n in self._order if n in own]
        self._timers = timers_of(self.component)
        width, reduction = self.layout.width, self.rank_reduction
        counts, sums = len(self._rows[Store.COUNT]), len(self._rows[Store.SUM])
        gauges, peaks = len(self._rows[Store.GAUGE]), len(self._rows[Store.PEAK])
        timers = len(self._timers)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64)

        def filled(value: float, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.float64)

        self.add_state("counts", zeros(counts, width), dist_reduce_fx=reduction)
        self.add_state("sums", filled(0.0, sums, width), dist_reduce_fx=reduction)
        self.add_state("samples", zeros(len(self._order), width), dist_reduce_fx=reduction)
        self.add_state("gauges", filled(math.nan, gauges, width), dist_reduce_fx=_sum_of_given)
        self.add_state("peaks", filled(math.nan, peaks, width), dist_reduce_fx=_sum_of_given)
        self.add_state("histograms", zeros(timers, BUCKETS), dist_reduce_fx="sum")
        self.add_state("lowest", filled(math.inf, timers), dist_reduce_fx="min")
        self.add_state("highest", filled(-math.inf, timers), dist_reduce_fx="max")

    # -- what a subclass says ---------------------------------------------------------------

    def columns(self, events: Array) -> Array:
        """Statistics of each event.

        Args:
            events: shape ``(n, fields)``, fields as in ``catalogue.RECORDS[self.record]``.

        Returns:
            shape ``(n, statistics)``, in the order of ``self.statistics``.
        """
        raise NotImplementedError

    def timed(self, events: Array) -> Sequence[tuple[Array, Array | None]]:
        """For each timer: seconds of each event (NaN: not timed) and how often each counts."""
        return ()

    # -- what every Metric does -------------------------------------------------------------

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the rows, in the order of ``samples``."""
        return tuple(self._order)

    @property
    def own_count(self) -> int:
        """Number of statistics that belong to this class's component."""
        return len(self._own)

    @property
    def layers(self) -> tuple[LayerId, ...]:
        """Layers known, by column."""
        return self.layout.layers

    def add_layers(self, layers: Iterable[Hashable]) -> None:
        """Make columns for layers not known yet; what is there stays."""
        for layer in layers:
            self.layout.column(layer)
        missing = self.layout.width - self.counts.shape[-1]
        if missing <= 0:
            return
        for name in ("counts", "sums", "samples", "gauges", "peaks"):
            fill = math.nan if name in ("gauges", "peaks") else 0
            grown = torch.nn.functional.pad(getattr(self, name), (0, missing), value=fill)
            setattr(self, name, grown)
            self._defaults[name] = torch.nn.functional.pad(
                self._defaults[name], (0, missing), value=fill
            )

    def fold_events(self, events: Array, slots: NDArray[np.intp]) -> None:
        """Add checked events: the monitor's way in, once per window.

        Args:
            events: shape ``(n, fields)``, float64; NaN is no data.
            slots: shape ``(n,)``, columns of the events' layers, all known.
        """
        if not len(events):
            return
        self._fold_columns(self.columns(events), slots)
        for row, (seconds, weights) in enumerate(self.timed(events)):
            self._fold_times(row, seconds, weights)

    def _fold_columns(self, columns: Array, slots: NDArray[np.intp]) -> None:
        width = self.counts.shape[-1]
        device = self.counts.device
        sums, samples = fold(columns, slots, width)
        c, s = len(self._rows[Store.COUNT]), len(self._rows[Store.SUM])
        g = len(self._rows[Store.GAUGE])
        self.counts += torch.from_numpy(sums[:c].astype(np.int64)).to(device)
        self.sums += torch.from_numpy(np.ascontiguousarray(sums[c : c + s])).to(device)
        self.samples += torch.from_numpy(np.ascontiguousarray(samples)).to(device)
        if g:
            last = _last(columns[:, c + s :], slots, width)
            self.gauges = _later(self.gauges, torch.from_numpy(last[:g]).to(device))
            peak = np.full((columns.shape[1] - c - s - g, width), np.nan)
            for row, column in enumerate(columns[:, c + s + g :].T):
                np.fmax.at(peak[row], slots, column)
            self.peaks = torch.fmax(self.peaks, torch.from_numpy(peak).to(device))

    def _fold_times(self, row: int, seconds: Array, weights: Array | None) -> None:
        given = ~np.isnan(seconds)
        if weights is not None:
            given &= weights > 0
            weights = weights[given]
        seconds = seconds[given]
        if not len(seconds):
            return
        counts = torch.from_numpy(bucket_counts(seconds, weights))
        self.histograms[row] += counts.to(self.histograms.device)
        self.lowest[row] = min(float(self.lowest[row]), float(seconds.min()))
        self.highest[row] = max(float(self.highest[row]), float(seconds.max()))

    def _update_events(self, layer: Layers, **fields: Values) -> None:
        """Check and fold what a user gave, one event or many."""
        several = isinstance(layer, (list, tuple, np.ndarray, range))
        ids: Sequence[Any] = list(layer) if several else [layer]  # type: ignore[arg-type]
        given = [_as_array(name, fields.get(name)) for name in RECORDS[self.record]]
        n = max([len(ids), *(len(a) for a in given)])
        for name, array in zip(("layer", *RECORDS[self.record]), (ids, *given), strict=True):
            if len(array) not in (1, n):
                raise ValueError(f"{name} has {len(array)} values, the others {n}")
        self.add_layers(i for i in ids if i is not None)
        slots = np.array([self.layout.column(i) for i in ids], dtype=np.intp)
        events = np.stack([np.broadcast_to(a, n) for a in given], axis=1)
        self.fold_events(events, np.ascontiguousarray(np.broadcast_to(slots, n)))

    def packed(self) -> Packed:
        """What was folded so far, as `Packed`, on the host."""
        packed = Packed.empty(self.counts.shape[-1])
        self.pack_into(packed, self._order)
        return packed

    def pack_into(self, packed: Packed, names: Sequence[str] | None = None) -> None:
        """Write this metric's own rows into a `Packed` of the same width."""
        wanted = self._own if names is None else names
        rows = [ROW[name] for name in wanted]
        here = [self._order.index(name) for name in wanted]
        blocks = (self.counts, self.sums, self.gauges, self.peaks)
        packed.values[rows] = np.concatenate([b.cpu().numpy() for b in blocks])[here]
        packed.samples[rows] = self.samples.cpu().numpy()[here]
        if self._timers:
            timers = [TIMER_ROW[name] for name in self._timers]
            packed.histograms[timers] = self.histograms.cpu().numpy()
            packed.extremes[timers, 0] = self.lowest.cpu().numpy()
            packed.extremes[timers, 1] = self.highest.cpu().numpy()

    def add_statistics(self, slot: int, values: Array, samples: Array) -> None:
        """Add statistics that were summed elsewhere (on a device) for one layer.

        Args:
            slot: column of the layer.
            values: shape ``(own statistics,)``; of a gauge or peak the value, NaN without one.
            samples: shape ``(own statistics,)``.
        """
        kept = iter(zip(values.tolist(), samples.tolist(), strict=True))
        for i, name in enumerate(self._order):
            if name not in self._own:
                continue
            value, given = next(kept)
            self.samples[i, slot] += int(given)
            rows, store = self._rows[_STORE[name]], _STORE[name]
            row = rows.index(name)
            if store is Store.COUNT:
                self.counts[row, slot] += int(value)
            elif store is Store.SUM:
                self.sums[row, slot] += value
            elif not math.isnan(value) and store is Store.GAUGE:
                self.gauges[row, slot] = value
            elif not math.isnan(value):
                old = self.peaks[row, slot]
                self.peaks[row, slot] = value if torch.isnan(old) else max(float(old), value)

    def compute(self) -> dict[str, Tensor]:
        """Every metric of this class.

        Returns:
            0-d float64 tensors by name; ``name/layer_04`` for a layer; NaN is no data.
        """
        packed = self.packed()
        table = read(packed, packed.samples)
        out: dict[str, Tensor] = {}
        for metric in METRICS:
            if not self._reads(metric.numerator, metric.denominator):
                continue
            row = table[METRIC_ROW[metric.name]]
            out[metric.name] = torch.tensor(row[0], dtype=torch.float64)
            if metric.kind is not Kind.QUANTILE:
                for layer in self.layers:
                    value = row[self.layout.column(layer)]
                    out[f"{metric.name}/{layer_tag(layer)}"] = torch.tensor(value)
        return out

    def _reads(self, numerator: str, denominator: str) -> bool:
        """Whether a metric's statistics are all kept here."""
        names = {*numerator.split("-"), denominator.lstrip("#")} - {""}
        kept = {*self._order, *self._timers}
        return names <= kept and not names <= set(self.borrowed)

    def reset(self) -> None:
        """Back to no data; layers stay known."""
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if state.shape == default.shape:
                state.copy_(default)  # in place: a window's end needs no new tensors
            else:
                setattr(self, name, default.detach().clone().to(state.device))
        self._update_count = 0
        self._computed = None
        self._forward_cache = None
        self._cache = None
        self._is_synced = False

    def merge_steps(self, later: LayeredMetric) -> None:
        """Add a later stretch of the same rank's steps; gauges take the later value.

        Raises:
            TypeError: ``later`` is another kind of metric.
        """
        self._merge(later, _later)

    def merge_ranks(self, other: LayeredMetric) -> None:
        """Add the same steps of another rank; gauges add.

        Raises:
            TypeError: ``other`` is another kind of metric.
        """
        self._merge(other, lambda a, b: _sum_of_given(torch.stack((a, b))))

    def merge_state(self, incoming_state: Any) -> None:
        """torchmetrics' merge, for replicas: `merge_ranks` of a metric or of its ``metric_state``."""
        if isinstance(incoming_state, LayeredMetric):
            self.merge_ranks(incoming_state)
            return
        other = type(self)(self.layers)
        for name, value in incoming_state.items():
            setattr(other, name, value.clone())
        self.merge_ranks(other)

    def _merge(self, other: LayeredMetric, gauges: Any) -> None:
        if type(other) is not type(self):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self.add_layers(other.layers)
        columns = torch.tensor([0, *(self.layout.column(i) for i in other.layers)])
        for name in ("counts", "sums", "samples"):
            getattr(self, name)[:, columns] += getattr(other, name)
        self.gauges[:, columns] = gauges(self.gauges[:, columns], other.gauges)
        peaks = torch.fmax if gauges is _later else gauges
        self.peaks[:, columns] = peaks(self.peaks[:, columns], other.peaks)
        self.histograms += other.histograms
        self.lowest = torch.minimum(self.lowest, other.lowest)
        self.highest = torch.maximum(self.highest, other.highest)
        self._update_count += other._update_count
        self._computed = None


def _as_array(name: str, value: Values) -> Array:
    """A field's values as float64, checked.

    Raises:
        ValueError: infinite, negative, or over 1 where 0..1 is allowed.
    """
    if value is None:
        return np.full(1, np.nan)
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    highest = 1.0 if name in UNIT_INTERVAL else np.finfo(np.float64).max
    bad = (array < 0) | (array > highest)
    if bad.any():
        allowed = "in 0..1" if name in UNIT_INTERVAL else "finite and at least 0"
        raise ValueError(f"{name} must be {allowed}, got {array[bad][0]:g}")
    return array
