"""Two runs beside each other: what became better or worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind, Polarity
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.layers import LayerId, matches

Array = NDArray[np.float64]
_SURE: Final = 2.58
_FEWEST: Final = 5
"""Windows of each run from which on the test can say anything: of 4 and 4 that lie wholly apart it
gives 2.31."""
_MOST: Final = 2000


@dataclass(frozen=True)
class Difference:
    """One number in two runs.

    Attributes:
        metric: its name.
        layer: of the model; None: the whole.
        unit: of the values; counters are per step.
        base: mean of the base run's windows; NaN where it has none.
        run: mean of the other run's windows; NaN where it has none.
        change: relative to the base; NaN where that is 0.
        verdict: ``regression``, ``improvement``, ``same``, ``missing`` (no data in the run) or
            ``new`` (none in the base).
    """

    metric: str
    layer: LayerId | None
    unit: str
    base: float
    run: float
    change: float
    verdict: str

    @property
    def fails(self) -> bool:
        """Whether the run is the worse for it."""
        return self.verdict in ("regression", "missing")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; None where there is no number."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def compare(
    base: RunHistory,
    run: RunHistory,
    *,
    tolerance: float = 0.05,
    time_tolerance: float = 0.2,
    tail: float = 0.5,
    metrics: Sequence[str] = ("*",),
) -> list[Difference]:
    """Compare the later windows of two runs.

    A number is worse or better where its mean changed by more than the tolerance, and where the
    windows' ranks (Mann-Whitney) say that this is no chance (|z| > 2.58); of less than 5 windows
    the change alone counts. Numbers of which neither direction is better are left out.

    Args:
        base: what is compared with.
        run: what is judged.
        tolerance: largest relative change that is ``same``.
        time_tolerance: the same of seconds and rates, which vary with the machine.
        tail: share of the windows that counts, the newest.
        metrics: globs of the metrics that are compared.
    """
    keys = [
        key
        for key in dict.fromkeys((*base.list_series("train"), *run.list_series("train")))
        if key.rank is None
        and BY_NAME[key.name].polarity is not Polarity.NEITHER
        and any(matches(glob, key.name) for glob in metrics)
    ]
    before = base.many(keys, max_points=_MOST)
    after = run.many(keys, max_points=_MOST)
    out = []
    for key in keys:
        old, new = _windows(before[key], tail), _windows(after[key], tail)
        if len(old) or len(new):
            out.append(_difference(key, old, new, tolerance, time_tolerance))
    order = {"regression": 0, "missing": 1, "improvement": 2, "new": 3, "same": 4}
    return sorted(out, key=lambda d: order[d.verdict])


def _windows(series: Series, tail: float) -> Array:
    """The values of the later windows; of a counter what each step added."""
    values = series.value
    if _is_total(series.key.name):
        if len(series) < 2:
            return np.zeros(0)
        values = series.added[1:] / np.maximum(np.diff(series.step), 1)
    later = values[len(values) - max(1, math.ceil(tail * len(values))) :]
    return later[np.isfinite(later)]


def _is_total(name: str) -> bool:
    """Whether it grows over the run, and what each step adds is what compares."""
    return BY_NAME[name].kind is Kind.COUNTER or BY_NAME[name].cumulative


def _difference(
    key: SeriesKey, old: Array, new: Array, tolerance: float, time_tolerance: float
) -> Difference:
    info = BY_NAME[key.name]
    unit = info.unit
    if _is_total(key.name):
        unit = f"{unit}/step"
    if not len(old):
        now = float(new.mean())
        return Difference(key.name, key.layer, unit, math.nan, now, math.nan, "new")
    was = float(old.mean())
    if not len(new):
        return Difference(key.name, key.layer, unit, was, math.nan, math.nan, "missing")
    now = float(new.mean())
    change = (now - was) / abs(was) if was else math.nan
    timed = unit in ("s", "samples/s", "tokens/s", "s/step")
    limit = time_tolerance if timed else tolerance
    moved = abs(change) > limit if was else now != was
    if min(len(old), len(new)) >= _FEWEST:
        moved = moved and abs(_rank_score(old, new)) > _SURE
    verdict = "same"
    if moved:
        better = (now > was) == (info.polarity is Polarity.HIGHER)
        verdict = "improvement" if better else "regression"
    return Difference(key.name, key.layer, unit, was, now, change, verdict)


def _rank_score(old: Array, new: Array) -> float:
    """Mann-Whitney's U in standard deviations, with the correction for ties.

    >>> round(_rank_score(np.arange(10.0), np.arange(10.0) + 20), 2)
    3.78
    """
    both = np.concatenate((old, new))
    _, places, counts = np.unique(both, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[places]
    m, n = len(old), len(new)
    u = ranks[m:].sum() - n * (n + 1) / 2
    total = m + n
    ties = (counts**3 - counts).sum() / (total * (total - 1))
    variance = m * n / 12 * (total + 1 - ties)
    return 0.0 if variance <= 0 else float((u - m * n / 2) / math.sqrt(variance))
