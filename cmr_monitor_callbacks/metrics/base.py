"""What the Metric classes share: packed states, one fold, one way to read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from cmr_monitor_callbacks.catalogue import (
    METRICS,
    REAL_FIELDS,
    RECORDS,
    STATISTICS,
    UNIT_INTERVAL,
    Kind,
    Store,
    statistics_of,
    timers_of,
)
from cmr_monitor_callbacks.events import durations, settled
from cmr_monitor_callbacks.folding import TIMER_ROWS, add_durations, add_event
from cmr_monitor_callbacks.histogram import BUCKETS
from cmr_monitor_callbacks.layers import LayerId, Layout, layer_tag
from cmr_monitor_callbacks.packed import METRIC_ROW, ROW, TIMER_ROW, Packed, read

Array = NDArray[np.float64]
Values = float | int | Sequence[float | None] | NDArray[Any] | Tensor | None
"""One number, or one for each event; None or NaN is no data."""
Layers = Hashable | Sequence[Hashable] | None

_STORE = {s.name: s.store for s in STATISTICS}


def _later(old: Tensor, new: Tensor) -> Tensor:
    return torch.where(torch.isnan(new), old, new)


_MERGE_STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gauges": _later,
    "lowest": torch.minimum,
    "highest": torch.maximum,
}


def _sum_of_given(stacked: Tensor) -> Tensor:
    """Sum over ranks of gauges; NaN only where no rank has one."""
    absent = torch.isnan(stacked)
    return torch.where(absent.all(0), math.nan, torch.where(absent, 0.0, stacked).sum(0))


class LayeredMetric(Metric):
    """Base of the Metric classes: statistics of one component, per layer and for the whole.

    States (one column per layer, column 0 for events that belong to no layer):
        ``counts`` int64 and ``sums`` float64 of shape ``(statistics, 1 + layers)``, ``samples``
        int64 of the same width, ``gauges`` float64 (NaN: no data), ``histograms`` int64
        ``(timers, 514)``, ``lowest`` and ``highest`` float64 ``(timers,)``.

    Layers may be named at the start; an unknown one gets a column when it first comes. `reset`
    keeps the columns. Merging over steps (`merge_steps`: gauges take the later value) differs from
    merging over ranks (torchmetrics' own sync: gauges add). Ranks must hold the same layers in the
    same order for torchmetrics' sync; name them at the start.
    """

    full_state_update = True  # forward() must not merge steps with the reduction for ranks
    is_differentiable = False
    higher_is_better = None

    component: ClassVar[str]
    """Whose statistics are kept, a key of ``catalogue.RECORDS``."""
    borrowed: ClassVar[tuple[str, ...]] = ()
    """Statistics of another component, kept only so that this class serves alone."""
    rank_reduction: ClassVar[str | None] = "sum"

    counts: Tensor
    sums: Tensor
    samples: Tensor
    gauges: Tensor
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
        own = statistics_of(self.component)
        names = (*own, *self.borrowed)
        self._rows = {store: [n for n in names if _STORE[n] is store] for store in Store}
        self._order = names
        self._timers = timers_of(self.component)
        width, reduction = self.layout.width, self.rank_reduction
        counts, sums = len(self._rows[Store.COUNT]), len(self._rows[Store.SUM])
        gauges = len(self._rows[Store.GAUGE])
        timers = len(self._timers)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64)

        def filled(value: float, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.float64)

        self.add_state("counts", zeros(counts, width), dist_reduce_fx=reduction)
        self.add_state("sums", filled(0.0, sums, width), dist_reduce_fx=reduction)
        self.add_state("samples", zeros(len(self._order), width), dist_reduce_fx=reduction)
        self.add_state("gauges", filled(math.nan, gauges, width), dist_reduce_fx=_sum_of_given)
        self.add_state("histograms", zeros(timers, BUCKETS), dist_reduce_fx="sum")
        self.add_state("lowest", filled(math.inf, timers), dist_reduce_fx="min")
        self.add_state("highest", filled(-math.inf, timers), dist_reduce_fx="max")

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the rows, in the order of ``samples``."""
        return self._order

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
        for name in ("counts", "sums", "samples", "gauges"):
            fill = math.nan if name == "gauges" else 0
            grown = torch.nn.functional.pad(getattr(self, name), (0, missing), value=fill)
            setattr(self, name, grown)
            default = cast(Tensor, self._defaults[name])
            self._defaults[name] = torch.nn.functional.pad(default, (0, missing), value=fill)

    def _update_events(self, layer: Layers, **fields: Values) -> None:
        """Check and add what a user gave, one event or many."""
        names = RECORDS[self.component]
        ids = _as_list(layer)
        given = [_as_array(name, fields.get(name)).tolist() for name in names]
        n = max([len(ids), *(len(values) for values in given)])
        for name, values in zip(("layer", *names), (ids, *given), strict=True):
            if len(values) not in (1, n):
                raise ValueError(f"{name} has {len(values)} values, the others {n}")
        self.add_layers(i for i in ids if i is not None)
        packed = Packed.empty(self.layout.width)
        for event in range(n):
            column = self.layout.column(ids[event if len(ids) > 1 else 0])
            values = (one[event if len(one) > 1 else 0] for one in given)
            checked = settled(
                self.component, tuple(None if math.isnan(value) else value for value in values)
            )
            add_event(packed, self.component, column, checked)
            found = durations(self.component, checked)
            for timer, (seconds, times) in zip(TIMER_ROWS[self.component], found, strict=True):
                if seconds is not None and times:
                    add_durations(packed, [(timer, np.array([seconds]), np.array([times]))])
        self._absorb(packed)

    def _absorb(self, packed: Packed) -> None:
        """Add a later stretch of steps, packed with these layers."""
        later = type(self).from_packed(packed, self.layers)
        for name in self._defaults:
            state = getattr(later, name).to(self.counts.device)
            mine = getattr(self, name)
            setattr(self, name, _MERGE_STEPS.get(name, torch.add)(mine, state))

    def packed(self) -> Packed:
        """What was folded so far, as `Packed`, on the host."""
        packed = Packed.empty(self.counts.shape[-1])
        for store, state in zip(Store, self._state_blocks(), strict=True):
            packed.values[[ROW[name] for name in self._rows[store]]] = state.cpu().numpy()
        packed.samples[[ROW[name] for name in self._order]] = self.samples.cpu().numpy()
        timers = [TIMER_ROW[name] for name in self._timers]
        packed.histograms[timers] = self.histograms.cpu().numpy()
        packed.extremes[timers, 0] = self.lowest.cpu().numpy()
        packed.extremes[timers, 1] = self.highest.cpu().numpy()
        return packed

    @classmethod
    def from_packed(cls, packed: Packed, layers: Iterable[Hashable]) -> LayeredMetric:
        """A metric that holds what was folded elsewhere.

        Args:
            packed: statistics whose columns are the whole model and these layers.
            layers: ids by column, from column 1 on.
        """
        metric = cls(layers)
        width = metric.layout.width
        for store, state in zip(Store, metric._state_blocks(), strict=True):
            rows = [ROW[name] for name in metric._rows[store]]
            state.copy_(torch.from_numpy(packed.values[rows, :width]))
        samples = packed.samples[[ROW[name] for name in metric._order], :width]
        metric.samples.copy_(torch.from_numpy(samples))
        timers = [TIMER_ROW[name] for name in metric._timers]
        metric.histograms.copy_(torch.from_numpy(packed.histograms[timers]))
        metric.lowest.copy_(torch.from_numpy(packed.extremes[timers, 0]))
        metric.highest.copy_(torch.from_numpy(packed.extremes[timers, 1]))
        metric._update_count = 1
        return metric

    def _state_blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.counts, self.sums, self.gauges

    def compute(self) -> dict[str, Tensor]:
        """Every metric of this class.

        Returns:
            0-d float64 tensors by name; ``name/layer_04`` for a layer; NaN is no data.
        """
        packed = self.packed()
        table = read(packed, packed)
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
        super().reset()  # the defaults grew with the layers

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """As in torchmetrics; persistent states carry their layers' ids along."""
        out = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        if self._persistent["counts"]:
            out[f"{prefix}layer_ids"] = list(self.layers)
        return out

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        layers = state_dict.pop(f"{prefix}layer_ids", None)
        if layers is not None:
            fresh = type(self)(layers)
            self.layout, self._defaults = fresh.layout, fresh._defaults
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
        """What torchmetrics calls for replicas: `merge_ranks` of a metric or ``metric_state``."""
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
        self.histograms += other.histograms
        self.lowest = torch.minimum(self.lowest, other.lowest)
        self.highest = torch.maximum(self.highest, other.highest)
        self._update_count += other._update_count
        self._computed = None


def _as_list(layer: Layers) -> list[Any]:
    return list(layer) if isinstance(layer, (list, tuple, np.ndarray, range)) else [layer]


def _as_array(name: str, value: Values) -> Array:
    """A field's values as float64, checked.

    Raises:
        ValueError: no number or flat sequence of numbers, infinite, negative, over 1 where 0..1 is
            allowed, or no whole number where it counts something.
    """
    if value is None:
        return np.full(1, np.nan)
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    try:
        array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        array = np.empty((0, 0))
    if array.ndim != 1:
        raise ValueError(f"{name} must be a number or a flat sequence of numbers, got {value!r}")
    highest = 1.0 if name in UNIT_INTERVAL else np.finfo(np.float64).max
    bad = (array < 0) | (array > highest)
    if bad.any():
        allowed = "in 0..1" if name in UNIT_INTERVAL else "finite and at least 0"
        raise ValueError(f"{name} must be {allowed}, got {array[bad][0]:g}")
    broken = array > np.floor(array)
    if name not in REAL_FIELDS and broken.any():
        raise ValueError(f"{name} must be a whole number, got {array[broken][0]:g}")
    return array
