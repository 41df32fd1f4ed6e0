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
        """Columns as `Ledger.shared` has them: those of all ranks."""
        self.by_rank: Packed | None = None
        """The run by rank, see `ranks`; None where there is one process."""

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

    def settle(self, closed: ClosedWindow, *, wait: bool = True) -> tuple[Packed, list[CellRead]]:
        """A closed window's statistics with its device numbers.

        Args:
            closed: the window; to be settled once.
            wait: for device numbers that have not arrived; else they go to the next window.

        Returns:
            the statistics, columns in this rank's own order, and the device numbers in them.
        """
        window = closed.statistics
        late = [] if wait else [read for read in closed.reads if not read.ready]
        taken = [read for read in closed.reads if read not in late]
        for read in taken:
            read.add_to(window)
        self._reads = late + self._reads
        return window, taken

    def add(self, window: Packed, by_rank: Packed | None) -> None:
        """Add a window to the run."""
        self.run.add(window)
        if by_rank is not None:
            if self.by_rank is None or self.by_rank.width != by_rank.width:
                self.by_rank = Packed.empty(by_rank.width)  # other ranks than before
            self.by_rank.add(by_rank)

    def state(self, width: int, *, alone: bool) -> dict[str, Any]:
        """Plain data: the run up to the last finished window, and the window in hand.

        Args:
            width: columns of the run.
            alone: whether there is one process; else the window in hand is this rank's only, and is
                left out.
        """
        window = Packed.empty(self._layout.width)
        if alone:
            window = self._window or window
            window.widen(self._layout.width)
            for read in self._reads:
                read.add_to(window)
            self._window, self._reads = window, []
        self.run.widen(width)
        by_rank = self.by_rank
        return {
            "run": self.run.state(),
            "window": window.state() if alone else None,
            "by_rank": None if by_rank is None else by_rank.state(),
            "ranks": 1 if by_rank is None else by_rank.width - 1,
        }

    def load(
        self,
        state: Mapping[str, Any],
        columns: Sequence[int],
        *,
        window: bool,
        by_layer: bool = False,
    ) -> None:
        """The inverse of `state`.

        Args:
            state: of one process or of all.
            columns: saved column ``i`` is now ``columns[i]``.
            window: whether this process takes over the window in hand.
            by_layer: whether histograms of layers are kept; else those of the past would stand
                for a run that goes on without.
        """
        saved, width = len(columns), self._layout.width
        self.run = Packed.from_state(state["run"], saved).moved(columns, width)
        if window and state["window"] is not None:
            self._window = Packed.from_state(state["window"], saved).moved(columns, width)
        if not by_layer:
            for packed in (self.run, self._window):
                if packed is not None:
                    packed.by_layer = None
        if state["by_rank"] is not None:
            self.by_rank = Packed.from_state(state["by_rank"], 1 + state["ranks"])
