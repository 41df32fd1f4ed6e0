"""Where time comes from: passed in, so that tests and replays need no waiting."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings in seconds."""

    def monotonic(self) -> float:
        """Seconds for differences within this process; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, for people and files."""
        ...


class SystemClock:
    """The machine's own clocks."""

    # staticmethods of C functions: a reading on the hot path costs no Python frame
    monotonic = staticmethod(time.perf_counter)
    wall = staticmethod(time.time)


class ManualClock:
    """A clock that stands still until told otherwise.

    >>> clock = ManualClock(100.0)
    >>> clock.advance(2.5)
    >>> clock.monotonic(), clock.wall()
    (102.5, 102.5)
    """

    def __init__(self, start: float = 0.0) -> None:
        self.now = start

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.now += seconds

    def monotonic(self) -> float:
        """The time set, in seconds."""
        return self.now

    def wall(self) -> float:
        """The time set, in seconds."""
        return self.now
