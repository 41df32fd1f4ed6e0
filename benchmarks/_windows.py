"""Windows made up for the benchmark of the history: 100 series as a run of two layers has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks import Snapshot
from cmr_monitor_callbacks.catalogue import BY_NAME, METRICS, Kind
from cmr_monitor_callbacks.history.columns import SeriesKey
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW

Array = NDArray[np.float64]
LAYERS: Final = (4, 8)
START: Final = 1_700_000_000.0
SECONDS: Final = 10.0
"""Between two windows."""
STEPS: Final = 50
COUNTS: Final = {"counter": 30, "gauge": 9, "constant": 3, "ratio": 25, "time": 28, "gaps": 5}
"""Series of each kind, 100 in all."""
_CHUNK: Final = 10_000


def kind_of(name: str) -> str:
    """Of which kind a metric's numbers are made up."""
    info = BY_NAME[name]
    if info.kind is Kind.COUNTER:
        return "counter"
    if info.kind is Kind.GAUGE:
        return "constant" if name == "capacity" else "gauge"
    if info.kind is Kind.RATIO:
        return "ratio"
    return "time" if info.unit == "s" else "gaps"


def keys() -> dict[str, list[SeriesKey]]:
    """The series by kind, in the order of a window's numbers."""
    out: dict[str, list[SeriesKey]] = {kind: [] for kind in COUNTS}
    for metric in METRICS:
        found = out[kind_of(metric.name)]
        for layer in (None, *LAYERS):
            if len(found) < COUNTS[kind_of(metric.name)]:
                found.append(SeriesKey("train", metric.name, layer))
    return out


KEYS: Final = [key for found in keys().values() for key in found]


def chunks(windows: int) -> Iterator[Array]:
    """The numbers, shape ``(up to 10,000, 100)``; NaN is no data.

    Counters are sums of Poisson counts. Gauges are a buffer's entries, and fractions of them.
    Ratios are of 3,200 tries whose chance drifts; 2 % are no data. Times are log-normal: every bit
    of them is noise. Of those with gaps one in ten is there.
    """
    rng = np.random.default_rng(0)
    rates = np.geomspace(1, 3000, COUNTS["counter"])
    totals = np.zeros(COUNTS["counter"])
    chance = rng.uniform(0.3, 0.95, COUNTS["ratio"])
    scale = np.geomspace(1e-5, 0.5, COUNTS["time"])
    for begin in range(0, windows, _CHUNK):
        n = min(_CHUNK, windows - begin)
        counters = totals + rng.poisson(rates, (n, len(rates))).cumsum(axis=0)
        totals = counters[-1]
        filling = 1 - np.exp(-np.arange(begin, begin + n) / 500)[:, None]
        entries = np.rint(1000 * filling + rng.normal(0, 8, (n, 3)))
        gauges = np.concatenate((entries, entries / 1024, entries * 450 / 2**20), axis=1)
        chance = np.clip(chance + rng.normal(0, 0.02, chance.shape), 0.05, 0.99)
        ratios = rng.binomial(3200, chance, (n, len(chance))) / 3200
        ratios[rng.random(ratios.shape) < 0.02] = np.nan
        times = scale * rng.lognormal(0.0, 0.1, (n, len(scale)))
        gaps = rng.normal(2.0, 0.5, (n, COUNTS["gaps"]))
        gaps[rng.random(gaps.shape) > 0.1] = np.nan
        yield np.concatenate((counters, gauges, np.full((n, 3), 1024.0), ratios, times, gaps), 1)


class Snapshots:
    """Real snapshots of such numbers."""

    def __init__(self) -> None:
        columns = {None: 0} | {layer: i + 1 for i, layer in enumerate(LAYERS)}
        self._base = dataclasses.replace(Snapshot.empty("train"), layer_ids=LAYERS)
        self._counted = COUNTS["counter"]
        self._counters = np.full((len(COUNTERS), len(columns)), np.nan)
        self._window = np.full((len(METRICS), len(columns)), np.nan)
        at = [
            (COUNTERS.index(k.name) if i < self._counted else METRIC_ROW[k.name], columns[k.layer])
            for i, k in enumerate(KEYS)
        ]
        flat = np.array([row * len(columns) + column for row, column in at])
        self._in_counters, self._in_window = flat[: self._counted], flat[self._counted :]

    def make(self, i: int, row: Array) -> Snapshot:
        """The window of that number."""
        counters, window = self._counters.copy(), self._window.copy()
        counters.ravel()[self._in_counters] = row[: self._counted]
        window.ravel()[self._in_window] = row[self._counted :]
        return dataclasses.replace(
            self._base,
            step=step_of(i),
            time=START + SECONDS * i,
            counters=counters,
            window=window,
        )

    def all(self, windows: int) -> Iterator[tuple[int, Array, Snapshot]]:
        """Number, values and snapshot of each window."""
        i = 0
        for chunk in chunks(windows):
            for row in chunk:
                yield i, row, self.make(i, row)
                i += 1


def step_of(i: int) -> int:
    """The last step of a window."""
    return STEPS * (i + 1) - 1
