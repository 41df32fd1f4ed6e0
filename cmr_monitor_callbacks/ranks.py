"""Numbers by rank, and those of the whole that are no sums over ranks.

A rank's statistics stand in packed arrays as a layer's do: column ``1 + r`` is rank ``r``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.ma  # np.median imports it when first called: not in a step
from numpy.typing import NDArray

from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW, ROW, Packed

Array = NDArray[np.float64]
STANDS_OUT: Final = 1.2
"""A rank stands out where its number is so many times the ranks' median."""
_RATES: Final = {
    "throughput": (ROW["samples"], ROW["sample_seconds"]),
    "tokens_per_second": (ROW["tokens"], ROW["token_seconds"]),
}
_BUSY: Final = [ROW[name] for name in ("data_wait_seconds", "forward_seconds", "optimizer_seconds")]
_STEPS: Final = ROW["step_seconds"]
_MEANS: Final = {  # metrics of which a rank that stands out is shown
    "step_time": "step_seconds",
    "data_wait": "data_wait_seconds",
    "avg_forward_time": "forward_seconds",
    "backward_time": "backward_seconds",
    "optimizer_time": "optimizer_seconds",
    "monitor_time": "monitor_seconds",
}
SHOWN_BY_RANK: Final = tuple(_MEANS)
"""Metrics that `standing_out` looks at."""


def put_rates(table: Array, by_rank: Packed) -> None:
    """Rates of the whole: the sum of the ranks' own, in place.

    Args:
        table: shape ``(metrics, width)``; column 0 is changed.
        by_rank: statistics of the same stretch.
    """
    for name, (amount, seconds) in _RATES.items():
        above, below = by_rank.values[amount, 1:], by_rank.values[seconds, 1:]
        timed = below > 0
        if timed.any():
            table[METRIC_ROW[name], 0] = (above[timed] / below[timed]).sum()


def put_greatest(table: Array, by_rank: Packed, row: int) -> None:
    """Forward time of the whole: the slowest rank's instead of the sum, in place at ``row``.

    What the whole has besides these ranks (of a run with other ranks before) stays in it.
    """
    seconds = by_rank.values[ROW["forward_seconds"], 1:]
    table[row, 0] += seconds.max() - seconds.sum()


FORWARD_COUNTER: Final = COUNTERS.index("total_forward_time")
FORWARD_METRIC: Final = METRIC_ROW["total_forward_time"]


@dataclass(frozen=True)
class Straggler:
    """The slowest rank of a window, by the time that it spends on its own.

    In a synchronous job every rank's step takes as long as the slowest one's: the others wait in
    the backward. What a rank does before that (waiting for data, the forward) and after it (the
    optimizer) tells them apart.

    Attributes:
        rank: the rank.
        ratio: its own seconds per step / the ranks' median.
        to_best: its own seconds per step / the least it ever had in a window; NaN at first.
    """

    rank: int
    ratio: float
    to_best: float


def own_seconds(by_rank: Packed) -> Array:
    """Seconds per step that each rank spends on its own; shape ``(ranks,)``, NaN without steps."""
    steps = by_rank.samples[_STEPS, 1:]
    seconds = by_rank.values[_BUSY, 1:].sum(axis=0)
    out: Array = np.full(len(steps), np.nan)
    np.divide(seconds, steps, out=out, where=steps > 0)
    return out


def straggler(own: Array, best: Array) -> Straggler | None:
    """The slowest rank; None with one rank, or where some rank has no steps.

    Args:
        own: seconds per step of each rank in the window.
        best: the least that each had in any window before.

    >>> straggler(np.array([0.1, 0.1, 0.3]), np.array([0.1, 0.1, 0.15]))
    Straggler(rank=2, ratio=3.0, to_best=2.0)
    """
    if len(own) < 2 or np.isnan(own).any():
        return None
    rank = int(own.argmax())
    median = float(np.median(own))
    if median <= 0:
        return None
    to_best = float(own[rank] / best[rank]) if best[rank] > 0 else math.nan
    return Straggler(rank, round(float(own[rank]) / median, 6), round(to_best, 6))


def standing_out(by_rank: Packed) -> list[tuple[str, int, float]]:
    """Metric, rank and value where a rank's mean time stands out from the others'."""
    found: list[tuple[str, int, float]] = []
    for metric, statistic in _MEANS.items():
        row = ROW[statistic]
        samples = by_rank.samples[row, 1:]
        if metric == "avg_forward_time":
            samples = by_rank.values[ROW["passes_timed"], 1:]
        if not (samples > 0).all():
            continue
        means = by_rank.values[row, 1:] / samples
        limit = STANDS_OUT * float(np.median(means))
        # under a millisecond all differences are noise
        for rank in np.flatnonzero((means > limit) & (means > 1e-3)).tolist():
            found.append((metric, rank, float(means[rank])))
    return found
