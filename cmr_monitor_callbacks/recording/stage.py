"""One stage's statistics: the window in hand and the run so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import RECORDS
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.metrics import CLASSES
from cmr_monitor_callbacks.metrics.folding import fold_into
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.cells import CellRead
from cmr_monitor_callbacks.recording.recorder import Batch

TIMES: Final = {
    "capture": ("capture_times", RECORDS["capture"].index("seconds")),
    "reconstruction": ("reconstruction_times", RECORDS["reconstruction"].index("seconds")),
}
"""Raw durations kept for ``to_dict``: name and field, by kind of event."""


_CLASSES_OF: Final = {
    kind: [c for c in CLASSES if c.record == kind] for kind in {c.record for c in CLASSES}
}


@dataclass(frozen=True)
class ClosedWindow:
    """A window that has ended; its device numbers may still be on their way.

    Attributes:
        statistics: what the host recorded.
        reads: what the devices recorded.
        step: last step of the window.
        time: when it ended, seconds since the Unix epoch.
    """

    statistics: Packed
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
        self._window = Packed.empty(layout.width)
        self._reads: list[CellRead] = []
        self.run = Packed.empty(layout.width)
        self.recent_times: dict[str, NDArray[np.float64]] = {}

    def fold(self, batches: Mapping[str, Batch], reads: Sequence[CellRead]) -> None:
        """Add what was recorded since the last fold."""
        self._window.widen(self._layout.width)
        for kind, batch in batches.items():
            for metric in _CLASSES_OF[kind]:
                fold_into(self._window, metric, batch.events, batch.slots)
            if kind in TIMES:
                self._keep(*TIMES[kind], batch.events)
        self._reads.extend(reads)

    def close(self, step: int, time: float) -> ClosedWindow:
        """End the window; a new one begins at once."""
        closed = ClosedWindow(self._window, self._reads, step, time)
        self._window, self._reads = Packed.empty(self._layout.width), []
        return closed

    def finish(self, closed: ClosedWindow) -> Packed:
        """Add a closed window to the run; waits for device numbers that have not arrived.

        Returns:
            the window's statistics.
        """
        window = closed.statistics
        for read in closed.reads:
            read.add_to(window)
        self.run.add(window)
        return window

    def state(self) -> dict[str, Any]:
        """Plain data: the run up to the last finished window, and the window in hand."""
        for read in self._reads:
            read.add_to(self._window)
        self._reads = []
        self.run.widen(self._layout.width)
        self._window.widen(self._layout.width)
        return {"run": self.run.state(), "window": self._window.state()}

    def load(self, state: Mapping[str, Any], columns: Sequence[int], width: int) -> None:
        """The inverse of `state`; saved column ``i`` is now ``columns[i]``."""
        saved = len(columns)
        self.run = Packed.from_state(state["run"], saved).moved(columns, width)
        self._window = Packed.from_state(state["window"], saved).moved(columns, width)

    def _keep(self, name: str, field: int, events: NDArray[np.float64]) -> None:
        seconds = events[-self._keep_times :, field]
        seconds = seconds[~np.isnan(seconds)]
        kept = self.recent_times.get(name)
        if kept is not None and len(seconds) < self._keep_times:
            seconds = np.concatenate((kept, seconds))
        if len(seconds):
            self.recent_times[name] = seconds[-self._keep_times :].copy()
