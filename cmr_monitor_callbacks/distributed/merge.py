"""Many ranks' statistics to one: as a whole, and with the ranks in the place of layers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS, Store
from cmr_monitor_callbacks.distributed.payload import Ranks
from cmr_monitor_callbacks.histogram import BUCKETS
from cmr_monitor_callbacks.packed import ROW, Packed

_GAUGES = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
_CAPACITY = _GAUGES.index(ROW["capacity"])


def merge(ranks: Ranks) -> tuple[Packed, Packed]:
    """All ranks' statistics, and the same by rank.

    Returns:
        of all together: counts, sums and gauges add, histograms merge; and with all that rank ``r``
        has in column ``1 + r``, column 0 empty, without durations.
    """
    rows = len(STATISTICS)
    cells = ranks.cells
    total, by_rank = cells.sum(axis=0), cells.sum(axis=2)
    given = cells[:, _GAUGES]
    total[_GAUGES] = _sum_of_given(given, axis=0)
    histograms = ranks.counts.sum(axis=0, dtype=np.int64).reshape(len(TIMERS), BUCKETS)
    extremes = np.empty(ranks.extremes.shape[1:])
    extremes[:, 0] = ranks.extremes[..., 0].min(axis=0)
    extremes[:, 1] = ranks.extremes[..., 1].max(axis=0)
    whole = Packed(total[:rows], total[rows:], histograms, extremes)

    apart = Packed.empty(1 + len(cells))
    by_rank[:, _GAUGES] = _whole_of_ranks(given)
    apart.values[:, 1:], apart.samples[:, 1:] = by_rank[:, :rows].T, by_rank[:, rows:].T
    return whole, apart


def _whole_of_ranks(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each rank's gauges of its whole, shape ``(ranks, gauges)``."""
    layers, own = _sum_of_given(given[..., 1:], axis=2), given[..., 0]
    gauges = np.where(np.isnan(layers), own, layers)
    # a limit of the whole bounds what the layers' limits add up to
    gauges[:, _CAPACITY] = np.fmin(layers[:, _CAPACITY], own[:, _CAPACITY])
    return gauges


def _sum_of_given(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Sum without NaN; NaN where there is nothing else."""
    absent = np.isnan(values)
    total: NDArray[np.float64] = np.where(absent, 0.0, values).sum(axis=axis)
    return np.where(absent.all(axis=axis), np.nan, total)
