"""Many ranks' statistics to one: as a whole, and with the ranks in the place of layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, Store
from cmr_monitor_callbacks.distributed.payload import Ranks
from cmr_monitor_callbacks.packed import ROW, Packed

_GAUGES = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
_ENTRIES, _CAPACITY, _BYTES = (ROW[name] for name in ("total_entries", "capacity", "memory_bytes"))


def merge(ranks: Ranks) -> Packed:
    """All ranks' statistics: counts, sums and gauges add, histograms merge."""
    values = ranks.values.sum(axis=0)
    values[_GAUGES] = _sum_of_given(ranks.values[:, _GAUGES], axis=0)
    return Packed(
        values,
        ranks.samples.sum(axis=0),
        ranks.histograms.sum(axis=0),
        np.stack((ranks.extremes[..., 0].min(axis=0), ranks.extremes[..., 1].max(axis=0)), axis=1),
    )


def by_rank(ranks: Ranks) -> Packed:
    """Statistics whose column ``1 + r`` is all that rank ``r`` has; column 0 is empty."""
    size = len(ranks.values)
    packed = Packed.empty(1 + size)
    packed.values[:, 1:] = ranks.values.sum(axis=2).T
    packed.samples[:, 1:] = ranks.samples.sum(axis=2).T
    layers = _sum_of_given(ranks.values[:, _GAUGES, 1:], axis=2)
    whole = ranks.values[:, _GAUGES, 0]
    gauges = np.where(np.isnan(layers), whole, layers)
    # a limit of the whole bounds what the layers' limits add up to
    capacity = _GAUGES.index(_CAPACITY)
    gauges[:, capacity] = np.fmin(layers[:, capacity], whole[:, capacity])
    packed.values[_GAUGES, 1:] = gauges.T
    return packed


def _sum_of_given(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Sum without NaN; NaN where there is nothing else."""
    absent = np.isnan(values)
    total: NDArray[np.float64] = np.where(absent, 0.0, values).sum(axis=axis)
    return np.where(absent.all(axis=axis), np.nan, total)
