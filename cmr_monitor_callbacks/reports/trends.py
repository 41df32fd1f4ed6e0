"""Whether a number rose or fell over a stretch of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import Polarity

Array = NDArray[np.float64]
_POINTS: Final = 200
"""Points that are compared pair by pair; of longer series evenly chosen ones."""
_FEWEST: Final = 8
_SURE: Final = 2.58
"""Standard deviations: one series in a hundred without a trend passes for one that has one."""
_LEAST: Final = 0.05
"""Change over the stretch, as a share of the typical value, under which nobody needs to care."""


@dataclass(frozen=True)
class Trend:
    """What became of a number.

    Attributes:
        word: ``improving``, ``worsening``, ``rising``, ``falling`` (where neither is better),
            ``steady``, or ``unknown`` of less than 8 points.
        change: over the whole stretch, as a share of the typical value; NaN where unknown.
    """

    word: str
    change: float


def trend_of(
    values: Array, polarity: Polarity, at: NDArray[np.int64] | Array | None = None
) -> Trend:
    """Theil-Sen slope, where the Mann-Kendall test says that there is one.

    Both look at pairs of points and not at their size, so that single outliers count for little.
    The change is the slope times the length of the stretch, over the median of the values' sizes
    (their mean where that is 0). Sources: Theil (1950) and Sen (1968); Mann (1945) and Kendall
    (1975), whose variance is corrected for ties.

    Args:
        values: shape ``(points,)``; NaN is no data.
        polarity: which direction is good.
        at: where they lie, such as steps, rising; None: evenly.

    >>> trend_of(np.linspace(1.0, 0.5, 20), Polarity.HIGHER).word
    'worsening'
    """
    places = np.arange(len(values), dtype=float) if at is None else np.asarray(at, dtype=float)
    given = np.isfinite(values)
    values, places = values[given], places[given]
    if len(values) < _FEWEST:
        return Trend("unknown", math.nan)
    if len(values) > _POINTS:
        chosen = np.linspace(0, len(values) - 1, _POINTS).astype(int)
        values, places = values[chosen], places[chosen]
    largest = float(np.abs(values).max())
    if largest == 0:
        return Trend("steady", 0.0)
    values = values / largest  # differences of the largest numbers are none else
    early, late = np.triu_indices(len(values), k=1)
    rise, apart = values[late] - values[early], places[late] - places[early]
    slope = float(np.median(rise[apart > 0] / apart[apart > 0])) if (apart > 0).any() else 0.0
    sizes = np.abs(values)
    change = slope * float(places[-1] - places[0]) / float(np.median(sizes) or sizes.mean())
    if abs(_score(values, np.sign(rise).sum())) < _SURE or not abs(change) >= _LEAST:
        return Trend("steady", change)
    if not math.isfinite(change):
        return Trend("steady", math.nan)
    if polarity is Polarity.NEITHER:
        return Trend("rising" if slope > 0 else "falling", change)
    better = (slope > 0) == (polarity is Polarity.HIGHER)
    return Trend("improving" if better else "worsening", change)


def _score(values: Array, s: float) -> float:
    """Mann-Kendall's statistic in standard deviations, with the correction for ties."""
    n = len(values)
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18
    if variance <= 0:
        return 0.0
    return float((s - np.sign(s)) / math.sqrt(variance))
