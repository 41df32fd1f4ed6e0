"""Many ranks' statistics to one: as a whole, and with the ranks in the place of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS, Store
from cmr_monitor_callbacks.custom import NO_NAMES, Table, whole_of
from cmr_monitor_callbacks.distributed.group import ExchangeError
from cmr_monitor_callbacks.distributed.payload import Header, Ranks, reason_of
from cmr_monitor_callbacks.histogram import BUCKETS
from cmr_monitor_callbacks.packed import ROW, Packed

_GAUGES = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
_CAPACITY = _GAUGES.index(ROW["capacity"])


@dataclass(frozen=True)
class Exchanged:
    """A window of all ranks.

    Attributes:
        headers: what each rank said, by rank.
        texts: the reasons of their votes, by rank.
        statistics: of all ranks together, columns as agreed on.
        by_rank: column ``1 + r`` is rank ``r``'s, column 0 is empty, durations are left out.
        cells: shape ``(ranks, 2 * statistics, width)``: values, then samples, of each rank; None
            where the ranks' numbers were put together on the way.
        custom: what users track, of all ranks together, in the order of the agreed names.
    """

    headers: Sequence[Header]
    texts: Sequence[str]
    statistics: Packed
    by_rank: Packed
    cells: NDArray[np.float64] | None = None
    custom: Table = field(default_factory=lambda: NO_NAMES)

    @property
    def first(self) -> Header:
        """Rank 0's header, whose clock and proposals count."""
        return self.headers[0]

    def vote(self, kind: str) -> str | None:
        """Why some rank asks for ``stop`` or ``checkpoint``; None: none does."""
        for header, text in zip(self.headers, self.texts, strict=True):
            if getattr(header, kind):
                return reason_of(kind, text)
        return None


def check(headers: Sequence[Header], mine: Header) -> None:
    """All ranks must speak of the same window.

    Raises:
        ExchangeError: one is at another, or counts other things.
    """
    for header in headers:
        if (header.layout, header.step, header.window) != (mine.layout, mine.step, mine.window):
            raise ExchangeError(
                f"rank {header.rank:.0f} is at window {header.window:.0f}, step {header.step:.0f}, "
                f"where rank {mine.rank:.0f} is at window {mine.window:.0f}, step {mine.step:.0f}"
            )


def merge(ranks: Ranks) -> Exchanged:
    """All ranks' statistics: counts, sums and gauges add, histograms merge."""
    rows = len(STATISTICS)
    cells = ranks.cells
    total, by_rank = cells.sum(axis=0), cells.sum(axis=2)
    given = cells[:, _GAUGES]
    total[_GAUGES] = sum_of_given(given, axis=0)
    histograms = ranks.counts.sum(axis=0, dtype=np.int64).reshape(len(TIMERS), BUCKETS)
    extremes = np.empty(ranks.extremes.shape[1:])
    extremes[:, 0] = ranks.extremes[..., 0].min(axis=0)
    extremes[:, 1] = ranks.extremes[..., 1].max(axis=0)
    whole = Packed(total[:rows], total[rows:], histograms, extremes, ranks.by_layer)

    apart = Packed.empty(1 + len(cells))
    by_rank[:, _GAUGES] = _whole_of_ranks(given)
    apart.values[:, 1:], apart.samples[:, 1:] = by_rank[:, :rows].T, by_rank[:, rows:].T
    return Exchanged(ranks.headers, ranks.texts, whole, apart, cells, whole_of(ranks.custom))


def join(parts: Sequence[Exchanged]) -> Exchanged:
    """Parts of a job to one, in the order of their ranks."""
    statistics = parts[0].statistics
    for part in parts[1:]:
        known = np.stack((statistics.values[_GAUGES], part.statistics.values[_GAUGES]))
        statistics.add(part.statistics)
        statistics.values[_GAUGES] = sum_of_given(known, axis=0)
    width = sum(part.by_rank.width - 1 for part in parts)
    apart = Packed.empty(1 + width)
    for name in ("values", "samples"):
        columns = [getattr(part.by_rank, name)[:, 1:] for part in parts]
        getattr(apart, name)[:, 1:] = np.concatenate(columns, axis=1)
    headers = [header for part in parts for header in part.headers]
    texts = [text for part in parts for text in part.texts]
    custom = whole_of(np.stack([part.custom for part in parts]))
    return Exchanged(headers, texts, statistics, apart, custom=custom)


def with_new_layers(first: Exchanged, rest: Exchanged) -> Exchanged:
    """A window, and what layers counted in it that were agreed on only then, and nothing else."""
    width = first.statistics.width
    whole = rest.statistics
    whole.values[:, :width] = first.statistics.values
    whole.samples[:, :width] = first.statistics.samples
    whole.histograms, whole.extremes = first.statistics.histograms, first.statistics.extremes
    known_layers = first.statistics.by_layer
    if whole.by_layer is not None and known_layers is not None:
        whole.by_layer.add(known_layers)
    apart = first.by_rank
    gauges = np.stack((apart.values[_GAUGES], rest.by_rank.values[_GAUGES]))
    apart.add(rest.by_rank)
    apart.values[_GAUGES] = sum_of_given(gauges, axis=0)
    custom = rest.custom.copy()
    known = len(first.custom)
    custom[:known] = whole_of(np.stack((rest.custom[:known], first.custom)))
    return Exchanged(first.headers, first.texts, whole, apart, custom=custom)


def _whole_of_ranks(given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each rank's gauges of its whole, shape ``(ranks, gauges)``."""
    layers, own = sum_of_given(given[..., 1:], axis=2), given[..., 0]
    gauges = np.where(np.isnan(layers), own, layers)
    # a limit of the whole bounds what the layers' limits add up to
    gauges[:, _CAPACITY] = np.fmin(layers[:, _CAPACITY], own[:, _CAPACITY])
    return gauges


def sum_of_given(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Sum without NaN; NaN where there is nothing else."""
    absent = np.isnan(values)
    total: NDArray[np.float64] = np.where(absent, 0.0, values).sum(axis=axis)
    return np.where(absent.all(axis=axis), np.nan, total)
