"""Latency histograms of each layer, beside those of the components: kept on request alone.

They are some ten times as large as all other numbers of a layer together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import TIMERS
from cmr_monitor_callbacks.histogram import BUCKETS, buckets_of, quantiles

LAYER_TIMERS: Final[tuple[str, ...]] = tuple(name for owner, name in TIMERS if owner != "timing")
"""Timers of calls, which have a layer; the first ones of ``TIMERS``, so that rows are the same."""
assert all(name == TIMERS[row][1] for row, name in enumerate(LAYER_TIMERS))


@dataclass
class LayerHistograms:
    """Histograms of calls by layer.

    Attributes:
        counts: shape ``(timers, width, BUCKETS)``, int64; column 0 is what names no layer.
        extremes: shape ``(timers, width, 2)``, float64: least and greatest seconds; inf and -inf
            without data.

    >>> histograms = LayerHistograms.empty(2)
    >>> histograms.put(0, np.array([1, 1]), np.array([0.25, 0.5]))
    >>> histograms.quantiles(np.array([0.0, 1.0]))[0, 1].tolist()
    [0.25, 0.5]
    """

    counts: NDArray[np.int64]
    extremes: NDArray[np.float64]

    @classmethod
    def empty(cls, width: int) -> LayerHistograms:
        """Nothing seen yet, for ``width`` columns."""
        extremes = np.empty((len(LAYER_TIMERS), width, 2))
        extremes[:] = (math.inf, -math.inf)
        return cls(np.zeros((len(LAYER_TIMERS), width, BUCKETS), dtype=np.int64), extremes)

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.counts.shape[1])

    def put(
        self,
        timer: int,
        columns: NDArray[Any],
        seconds: NDArray[np.float64],
        times: NDArray[np.float64] | None = None,
    ) -> None:
        """Add durations.

        Args:
            timer: row of the timer.
            columns: of the layer of each.
            seconds: the durations.
            times: how often each counts; None: once.
        """
        at = columns.astype(np.intp)
        counts = self.counts[timer].reshape(-1)
        places = at * BUCKETS + buckets_of(seconds)
        counts += np.bincount(places, times, minlength=counts.size).astype(np.int64)
        np.minimum.at(self.extremes[timer, :, 0], at, seconds)
        np.maximum.at(self.extremes[timer, :, 1], at, seconds)

    def add(self, later: LayerHistograms) -> None:
        """Merge over steps or ranks; the later one is no wider."""
        w = later.width
        self.counts[:, :w] += later.counts
        low, high = self.extremes[:, :w, 0], self.extremes[:, :w, 1]
        np.minimum(low, later.extremes[..., 0], out=low)
        np.maximum(high, later.extremes[..., 1], out=high)

    def moved(
        self, columns: Sequence[int], width: int, taken: Sequence[int] | None = None
    ) -> LayerHistograms:
        """Column ``taken[i]`` (None: ``i``) at ``columns[i]`` of ``width`` columns, no other."""
        out = LayerHistograms.empty(width)
        these = slice(None) if taken is None else list(taken)
        out.counts[:, list(columns)] = self.counts[:, these]
        out.extremes[:, list(columns)] = self.extremes[:, these]
        return out

    def widened(self, width: int) -> LayerHistograms:
        """With room for layers that arrived later."""
        return self if width <= self.width else self.moved(range(self.width), width)

    def copy(self) -> LayerHistograms:
        """An independent copy."""
        return LayerHistograms(self.counts.copy(), self.extremes.copy())

    def quantiles(self, qs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Lower empirical quantiles, within 2 %; shape ``(timers, width, len(qs))``."""
        found = quantiles(self.counts.reshape(-1, BUCKETS), qs, self.extremes.reshape(-1, 2))
        return found.reshape(len(LAYER_TIMERS), self.width, len(qs))

    def state(self) -> dict[str, Any]:
        """Plain lists by timer, for a checkpoint: of each layer what its buckets hold."""
        return {
            name: [
                {
                    "buckets": np.flatnonzero(counts).tolist(),
                    "counts": counts[counts > 0].tolist(),
                    "extremes": extremes.tolist(),
                }
                for counts, extremes in zip(self.counts[i], self.extremes[i], strict=True)
            ]
            for i, name in enumerate(LAYER_TIMERS)
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], width: int) -> LayerHistograms:
        """The inverse of `state`; timers that this version does not know are left out."""
        out = cls.empty(width)
        for i, name in enumerate(LAYER_TIMERS):
            for column, held in enumerate(state.get(name, ())):
                out.counts[i, column, held["buckets"]] = held["counts"]
                out.extremes[i, column] = held["extremes"]
        return out
