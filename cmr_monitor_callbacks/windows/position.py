"""Where training is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where training is, by steps and by windows.

    Attributes:
        step: the last step that is over; -1: none is.
        windows: that were finished.
        begin: the step before the window in hand.
        since: when that window began, by a steady clock, in seconds.

    >>> position = Position(since=0.0)
    >>> position.under_way()
    0
    """

    since: float
    step: int = -1
    windows: int = 0
    begin: int = -1

    def under_way(self) -> int:
        """The step that is under way."""
        return self.step + 1

    def forget(self, now: float) -> None:
        """A run begins anew."""
        self.since, self.step, self.windows, self.begin = now, -1, 0, -1
