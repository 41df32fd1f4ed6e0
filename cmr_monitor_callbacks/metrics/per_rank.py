"""Metrics whose numbers over ranks are no sums: the ranks' states are kept apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from cmr_monitor_callbacks.metrics.base import LayeredMetric

M = TypeVar("M", bound="PerRankMetric")
_STATES = ("counts", "sums", "samples")


class PerRankMetric(LayeredMetric):
    """A metric some of whose numbers add, or are the greatest, over ranks.

    After a sync, or after `merge_ranks`, its states have the ranks as their first dimension; it can
    be computed and merged further then, but not updated.
    """

    rank_reduction = None
    over_ranks: ClassVar[dict[str, Callable[[Sequence[float]], float]]]
    """How the ranks' values of a metric make the whole's; others are sums divided by sums."""

    def compute(self) -> dict[str, Tensor]:
        """See `LayeredMetric.compute`."""
        ranks = self._ranks()
        if len(ranks) == 1:
            return super().compute()
        total = type(self)(self.layers)
        for rank in ranks:
            LayeredMetric.merge_ranks(total, rank)
        total.histograms, total.lowest, total.highest = self.histograms, self.lowest, self.highest
        out = LayeredMetric.compute(total)
        values = [LayeredMetric.compute(rank) for rank in ranks]
        for name, reduce in self.over_ranks.items():
            given = [float(v[name]) for v in values if not math.isnan(v[name])]
            out[name] = torch.tensor(reduce(given) if given else math.nan, dtype=torch.float64)
        return out

    def merge_ranks(self, other: LayeredMetric) -> None:
        """Add the same steps of another rank, kept beside this one's.

        Raises:
            TypeError: ``other`` is another kind of metric.
        """
        if not isinstance(other, type(self)):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self.add_layers(other.layers)
        twin = copy.deepcopy(other)
        twin.add_layers(self.layers)
        columns = torch.tensor([0, *(twin.layout.column(layer) for layer in self.layers)])
        for name in _STATES:
            mine, theirs = getattr(self, name), getattr(twin, name)[..., columns]
            stacked = [state if state.ndim == 3 else state[None] for state in (mine, theirs)]
            setattr(self, name, torch.cat(stacked))
        self.histograms = self.histograms + other.histograms
        self.lowest = torch.minimum(self.lowest, other.lowest)
        self.highest = torch.maximum(self.highest, other.highest)
        self._update_count += other._update_count
        self._computed = None

    def _ranks(self: M) -> list[M]:
        """A metric for each rank; durations are left out, for histograms were merged."""
        if self.counts.ndim == 2:
            return [self]
        ranks = []
        for index in range(len(self.counts)):
            rank = type(self)(self.layers)
            for name in _STATES:
                setattr(rank, name, getattr(self, name)[index].clone())
            rank._update_count = 1
            ranks.append(rank)
        return ranks
