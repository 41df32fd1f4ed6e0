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


def bucket_counts(
    seconds: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Counts of durations per bucket.

    Args:
        seconds: shape ``(n,)``, finite and at least 0, in seconds.
        weights: shape ``(n,)``, how often each one counts; 1 where omitted.

    Returns:
        shape ``(BUCKETS,)``.
    """
    ratio = np.maximum(seconds, LOWEST)
    ratio /= LOWEST
    index = np.ceil(np.log(ratio) * _SCALE).astype(np.intp)
    np.minimum(index, BUCKETS - 1, out=index)
    counts = np.bincount(index, weights, minlength=BUCKETS)
    return counts.astype(np.int64)


def quantile(counts: NDArray[np.int64], q: float, lowest: float, highest: float) -> float:
    """The lower empirical quantile, within 2 % of the exact one.

    Args:
        counts: shape ``(BUCKETS,)``.
        q: in 0..1; 0.95 for the 95th percentile.
        lowest: the exact minimum, answered for the underflow bucket.
        highest: the exact maximum, answered for the overflow bucket.

    Returns:
        seconds; NaN without data.

    >>> counts = bucket_counts(np.array([0.010, 0.020, 0.030]))
    >>> abs(quantile(counts, 0.5, 0.010, 0.030) / 0.020 - 1) <= RELATIVE_ERROR
    True
    """
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    if total == 0:
        return math.nan
    rank = int(q * (total - 1))
    bucket = int(np.searchsorted(cumulative, rank, side="right"))
    if bucket == 0:
        return lowest
    if bucket == BUCKETS - 1:
        return highest
    # the midpoint of a bucket may lie outside of what was seen in it
    return min(max(float(_MIDPOINTS[bucket]), lowest), highest)
