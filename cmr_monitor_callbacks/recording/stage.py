"""One stage's statistics: the window in hand and the run so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import RECORDS
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.metrics import MetricSet
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.cells import CellRead
from cmr_monitor_callbacks.recording.recorder import Batch

TIMES: Final = {
    "capture": ("capture_times", RECORDS["capture"].index("seconds")),
    "reconstruction": ("reconstruction_times", RECORDS["reconstruction"].index("seconds")),
}
"""Raw durations kept for ``to_dict``: name and field, by kind of event."""


@dataclass
class ClosedWindow:
    """A window that has ended; its device numbers may still be on their way.

    Attributes:
        metrics: what the host recorded.
        reads: what the devices recorded.
        step: last step of the window.
        time: when it ended, seconds since the Unix epoch.
    """

    metrics: MetricSet
    reads: list[CellRead]
    step: int
    time: float

    @property
    def ready(self) -> bool:
        """Whether all numbers have arrived; never waits."""
        return all(read.ready for read in self.reads)


class StageStatistics:
    """Statistics of ``train``, ``val``, ``test`` or ``predict``.

    Args:
        layout: the layers.
        keep_times: raw durations to keep of each kind.
    """

    def __init__(self, layout: Layout, keep_times: int) -> None:
        self._layout = layout
        self._keep_times = keep_times
        self._metrics = MetricSet(layout)
        self._spare: MetricSet | None = None
        self._reads: list[CellRead] = []
        self._carried: Packed | None = None
        self.run = Packed.empty(layout.width)
        self.recent_times: dict[str, NDArray[np.float64]] = {}

    def fold(self, batches: Mapping[str, Batch], reads: Sequence[CellRead]) -> None:
        """Add what was recorded since the last fold."""
        self._metrics.widen()
        for kind, batch in batches.items():
            self._metrics.fold(kind, batch.events, batch.slots)
            if kind in TIMES:
                self._keep(*TIMES[kind], batch.events)
        self._reads.extend(reads)

    def close(self, step: int, time: float) -> ClosedWindow:
        """End the window; a new one begins at once."""
        closed = ClosedWindow(self._metrics, self._reads, step, time)
        self._metrics = self._spare or MetricSet(self._layout)
        self._spare = None
        self._reads = []
        return closed

    def finish(self, closed: ClosedWindow) -> Packed:
        """Add a closed window to the run; waits for device numbers that have not arrived.

        Returns:
            the window's statistics.
        """
        window = self._collect(closed.metrics, closed.reads)
        if self._carried is not None:
            self._carried.add(window)
            window, self._carried = self._carried, None
        self.run.add(window)
        closed.metrics.reset()
        self._spare = closed.metrics
        return window

    def state(self) -> dict[str, Any]:
        """Plain data: the run up to the last finished window, and the window in hand."""
        self._metrics.widen()
        window = self._collect(self._metrics, self._reads)
        self._reads = []
        if self._carried is not None:
            carried = self._carried.copy()
            carried.add(window)
            window = carried
        self.run.widen(window.width)
        return {"run": self.run.state(), "window": window.state()}

    def load(self, state: Mapping[str, Any], columns: Sequence[int], width: int) -> None:
        """The inverse of `state`; saved column ``i`` is now ``columns[i]``."""
        saved = len(columns)
        self.run = Packed.from_state(state["run"], saved).moved(columns, width)
        self._carried = Packed.from_state(state["window"], saved).moved(columns, width)

    def _collect(self, metrics: MetricSet, reads: Sequence[CellRead]) -> Packed:
        metrics.widen()
        for read in reads:
            metrics.add_cells(dict(zip(read.rows, read.arrays(), strict=True)))
        return metrics.packed()

    def _keep(self, name: str, field: int, events: NDArray[np.float64]) -> None:
        seconds = events[:, field]
        kept = self.recent_times.get(name)
        seconds = seconds[~np.isnan(seconds)]
        if kept is not None:
            seconds = np.concatenate((kept, seconds))
        if len(seconds):
            self.recent_times[name] = seconds[-self._keep_times :].copy()
