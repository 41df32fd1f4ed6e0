"""Latency histograms over fixed logarithmic buckets, so that counts of steps and ranks just add.

Buckets grow by the factor ``GAMMA``; the value reported for a bucket is at most ``RELATIVE_ERROR``
from any value in it (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", VLDB 2019). Fixed bounds make every histogram of a run alike in
shape, which a packed reduction needs; what lies outside is counted in the two end buckets and
answered by the exact extremes, kept beside the counts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

RELATIVE_ERROR = 0.02
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOWEST = 1e-6
"""Upper bound of the underflow bucket, in seconds."""
BUCKETS = 514
"""Underflow, 512 buckets up to about 787 s, overflow."""

_SCALE = 1.0 / math.log(GAMMA)
_MIDPOINTS = LOWEST * 2 * GAMMA ** np.arange(BUCKETS, dtype=np.float64) / (GAMMA + 1)


def buckets_of(seconds: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bucket of each duration.

    Args:
        seconds: shape ``(n,)``, finite and at least 0.

    Returns:
        shape ``(n,)``, in ``0..BUCKETS - 1``.

    >>> buckets_of(np.array([0.0, 1e-6, 1e9])).tolist()
    [0, 0, 513]
    """
    scaled = np.maximum(seconds, LOWEST)
    scaled /= LOWEST
    np.log(scaled, out=scaled)
    scaled *= _SCALE
    np.ceil(scaled, out=scaled)
    np.minimum(scaled, BUCKETS - 1, out=scaled)
    return scaled.astype(np.intp)


def quantiles(
    counts: NDArray[np.int64], qs: NDArray[np.float64], extremes: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Lower empirical quantiles, within 2 % of the exact ones.

    Args:
        counts: shape ``(timers, BUCKETS)``.
        qs: shape ``(m,)``, each in 0..1; 0.95 for the 95th percentile.
        extremes: shape ``(timers, 2)``: the exact minimum, answered for the underflow bucket, and
            maximum, answered for the overflow bucket.

    Returns:
        seconds, shape ``(timers, m)``; NaN without data.

    >>> counts = np.bincount(buckets_of(np.array([0.010, 0.020, 0.030])), minlength=BUCKETS)[None]
    >>> median = quantiles(counts, np.array([0.5]), np.array([[0.010, 0.030]]))
    >>> bool(abs(median[0, 0] / 0.020 - 1) <= RELATIVE_ERROR)
    True
    """
    # all timers in one row: a timer's counts begin where those before it end
    cumulative = np.cumsum(counts.ravel())
    ends = cumulative[BUCKETS - 1 :: BUCKETS, None]
    before = np.zeros_like(ends)
    before[1:] = ends[:-1]
    totals = ends - before
    ranks = before + (qs * np.maximum(totals - 1, 0)).astype(np.int64)
    first = np.arange(0, counts.size, BUCKETS)[:, None]
    buckets = cumulative.searchsorted(ranks, side="right") - first
    np.minimum(buckets, BUCKETS - 1, out=buckets)
    lowest, highest = extremes[:, :1], extremes[:, 1:]
    # the midpoint of a bucket may lie outside of what was seen in it
    values = np.minimum(np.maximum(_MIDPOINTS[buckets], lowest), highest)
    values = np.where(buckets == 0, lowest, np.where(buckets == BUCKETS - 1, highest, values))
    out: NDArray[np.float64] = np.where(totals > 0, values, np.nan)
    return out
