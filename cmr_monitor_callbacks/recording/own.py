"""What the monitor says of itself: its counts, its cost, and the rank that the others wait for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.distributed import Exchanged, Header
from cmr_monitor_callbacks.packed import ROW, Packed
from cmr_monitor_callbacks.ranks import own_seconds, straggler
from cmr_monitor_callbacks.recording.ledger import Reading
from cmr_monitor_callbacks.resources import by_rank, whole_of
from cmr_monitor_callbacks.resources.samples import NOTHING

_MEASURED: Final = ("collection_rate", "storage_latency", "alert_rate")


class OwnNumbers:
    """The monitor's own numbers, window by window; over all ranks, as far as they were heard.

    Attributes:
        processing_time: seconds that the end of this process's last window took.
        measured: of this process at the end of its last window, by name of `Header`'s fields:
            ``collection_rate``, ``storage_latency``, ``alert_rate``; NaN is no data.
        since: when the window in hand began, and the events recorded before it; None: no step was.
        resources: what was sampled of this process' machine in its last window.
        window: what the last window added to each count.
        by_rank: numbers that each rank has, by name, shape ``(ranks,)``.
    """

    def __init__(self) -> None:
        self.processing_time = 0.0
        self.measured = dict.fromkeys(_MEASURED, math.nan)
        self.resources = NOTHING
        self.window: dict[str, float] = {}
        self.by_rank: dict[str, NDArray[np.float64]] = {}
        self._others: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._best: NDArray[np.float64] | None = None
        self.since: tuple[float, int] | None = None

    def begin(self, now: float, events: int) -> None:
        """Before the first step: events are counted from here.

        Args:
            now: reading of a steady clock, in seconds.
            events: recorded until now.
        """
        self.since = now, events

    def close(self, now: float, events: int, storage_latency: float, alert_rate: float) -> None:
        """At the end of a window: measure this process.

        Args:
            now: reading of a steady clock, in seconds.
            events: recorded until now.
            storage_latency: seconds that writing the last window took; NaN is no data.
            alert_rate: notices per minute.
        """
        rate = math.nan
        if self.since is not None and now > self.since[0]:
            rate = (events - self.since[1]) / (now - self.since[0])
        self.since = now, events
        self.measured = dict(zip(_MEASURED, (rate, storage_latency, alert_rate), strict=True))

    def totals(self, mine: Mapping[str, float]) -> dict[str, float]:
        """This process's counts with those of the others, as they were heard last."""
        return {name: count + self._others.get(name, 0) for name, count in mine.items()}

    def resume(self, totals: Mapping[str, float]) -> None:
        """Counts that were there before: no window added them."""
        self._before = dict(totals)

    def read(
        self, mine: Mapping[str, float], reading: Reading, exchanged: Exchanged | None
    ) -> dict[str, float]:
        """Own numbers at the end of a window.

        Args:
            mine: this process's counts: names of `Header`'s fields.
            reading: the window.
            exchanged: what all ranks said of it; None: there is one process.
        """
        self.by_rank = {}
        if exchanged is not None:
            for name, count in mine.items():
                everybody = sum(getattr(header, name) for header in exchanged.headers)
                self._others[name] = everybody - count
        own = self.totals(mine)
        self.window = {name: own[name] - self._before.get(name, 0.0) for name in own}
        self._before = dict(own)
        values = reading.statistics.values
        spent, step, wait = (
            float(values[ROW[name], 0])
            for name in ("monitor_seconds", "step_seconds", "data_wait_seconds")
        )
        own["overhead_seconds"] = float(reading.run.values[ROW["monitor_seconds"], 0])
        own["processing_time"] = self.processing_time
        measured = self.measured if exchanged is None else _whole(exchanged.headers)
        own.update((name, value) for name, value in measured.items() if value == value)
        if exchanged is not None:
            own["processing_time"] = max(h.processing_time for h in exchanged.headers)
            own.update(self._straggler(exchanged.by_rank))
            windows = [header.resources for header in exchanged.headers]
            self.by_rank = {**self.by_rank, **by_rank(windows)}
            own.update(whole_of(windows))
        else:
            own.update(whole_of([self.resources]))
        if step + wait > 0:
            own["overhead_fraction"] = spent / (step + wait)
        return own

    def _straggler(self, by_rank: Packed) -> dict[str, float]:
        seconds = own_seconds(by_rank)
        median = float(np.median(seconds))
        if median > 0:
            self.by_rank = {"straggler_ratio": seconds / median}
        if self._best is None or len(self._best) != len(seconds):
            self._best = np.full(len(seconds), np.nan)
        found = straggler(seconds, self._best)
        self._best = np.fmin(self._best, seconds)
        if found is None:
            return {}
        own = {"straggler_rank": float(found.rank), "straggler_ratio": found.ratio}
        if found.to_best == found.to_best:
            own["straggler_to_best"] = found.to_best
        return own


def _whole(headers: Sequence[Header]) -> dict[str, float]:
    """What was measured of each rank as one number: rates add, the history is rank 0's."""
    rates = [header.collection_rate for header in headers]
    known = [rate for rate in rates if rate == rate]
    return {
        "collection_rate": sum(known) if known else math.nan,
        "storage_latency": headers[0].storage_latency,
        "alert_rate": sum(header.alert_rate for header in headers),
    }
