"""One stage's statistics: the window in hand and the run so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.cells import CellRead


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
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._window: Packed | None = None
        self._reads: list[CellRead] = []
        self.run = Packed.empty(layout.width)

    def fold(self, packed: Packed, reads: Sequence[CellRead]) -> None:
        """Add what was recorded since the last fold."""
        if self._window is None:
            self._window = packed
        else:
            self._window.add(packed)
        self._reads.extend(reads)

    def close(self, step: int, time: float) -> ClosedWindow:
        """End the window; a new one begins at once."""
        window = self._window or Packed.empty(self._layout.width)
        closed = ClosedWindow(window, self._reads, step, time)
        self._window, self._reads = None, []
        return closed

    def in_hand(self) -> Packed:
        """A copy of the window begun, with the device numbers that have arrived; never waits."""
        window = self._window or Packed.empty(self._layout.width)
        copy = window.copy()
        copy.widen(self._layout.width)
        for read in self._reads:
            if read.ready:
                read.add_to(copy)
        return copy

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
        width = self._layout.width
        window = self._window or Packed.empty(width)
        window.widen(width)
        self.run.widen(width)
        for read in self._reads:
            read.add_to(window)
        self._window, self._reads = window, []
        return {"run": self.run.state(), "window": window.state()}

    def load(self, state: Mapping[str, Any], columns: Sequence[int], width: int) -> None:
        """The inverse of `state`; saved column ``i`` is now ``columns[i]``."""
        saved = len(columns)
        self.run = Packed.from_state(state["run"], saved).moved(columns, width)
        self._window = Packed.from_state(state["window"], saved).moved(columns, width)
