"""What the engine remembers of every instance, as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]
_CLOCKS: Final = ("since", "begun", "quiet", "gap", "fired")
_LEVELS: Final = ("phase", "severity", "floor", "level")
_NUMBERS: Final = ("best", "ewma", "before", "learned", "value")


class Memory:
    """State of so many instances.

    Attributes:
        phase: place in `Phase`.
        severity: of the alert, 1 to 3; 0 where none is open.
        floor: severity that the alert was raised to; 0: none.
        level: severity of the threshold met last.
        since: when its condition was first met, shape ``(3, instances)``: step, window, seconds;
            moved by gaps, in which what is waited for stands still.
        begun: the same, not moved.
        quiet: when the condition of a firing alert ended; NaN while it holds.
        gap: when its data ended; NaN while there is any.
        fired: when it started firing.
        history: in which of the last windows each severity was met, a bit for each window.
        best: the best value so far.
        ewma: the average so far.
        learned: values in it.
        before: the last value, for ``frozen``.
        value: the last value that was judged.
    """

    def __init__(self, size: int) -> None:
        self.phase = np.zeros(size, dtype=np.int8)
        self.severity = np.zeros(size, dtype=np.int8)
        self.floor = np.zeros(size, dtype=np.int8)
        self.level = np.zeros(size, dtype=np.int8)
        self.since = np.full((3, size), math.nan)
        self.begun = np.full((3, size), math.nan)
        self.quiet = np.full((3, size), math.nan)
        self.gap = np.full((3, size), math.nan)
        self.fired = np.full((3, size), math.nan)
        self.history = np.zeros((3, size), dtype=np.uint64)
        self.best = np.full(size, math.nan)
        self.ewma = np.full(size, math.nan)
        self.learned = np.zeros(size)
        self.before = np.full(size, math.nan)
        self.value = np.full(size, math.nan)

    def __len__(self) -> int:
        return len(self.phase)

    def noteworthy(self) -> Places:
        """Instances that differ from new ones."""
        known = self.phase != 0
        for numbers in (self.gap[0], self.best, self.ewma, self.before):
            known |= ~np.isnan(numbers)
        known |= self.history.any(axis=0)
        return np.flatnonzero(known)

    def count(self, met: Mask, data: Mask, at: Places, m: Places, n: Places) -> Mask:
        """Note in which windows severities were met; whether they were in m of the last n.

        Args:
            met: shape ``(3, len(at))``.
            data: which instances have data; the others' windows do not count.
            at: the instances.
            m: fewest windows.
            n: of so many.
        """
        one = np.uint64(1)
        keep = np.where(n >= 64, np.uint64(2**64 - 1), (one << n.astype(np.uint64)) - one)
        later = ((self.history[:, at] << one) | met.astype(np.uint64)) & keep
        self.history[:, at] = np.where(data, later, self.history[:, at])
        raw = np.ascontiguousarray(self.history[:, at]).view(np.uint8)
        bits = np.unpackbits(raw.reshape(3, len(at), 8), axis=2).sum(axis=2)
        held: Mask = (bits >= m) & data
        return held

    def set_clocks(self, seconds: float, names: Iterable[str] = _CLOCKS) -> None:
        """So many seconds are added to what is remembered of the clock."""
        for name in names:
            getattr(self, name)[2] += seconds

    def take(self, other: Memory, places: Mapping[int, int]) -> None:
        """Take over instances of another memory: from where to where."""
        here, there = list(places.values()), list(places)
        for name in (*_LEVELS, *_NUMBERS):
            getattr(self, name)[here] = getattr(other, name)[there]
        for name in (*_CLOCKS, "history"):
            getattr(self, name)[:, here] = getattr(other, name)[:, there]

    def of(self, i: int) -> dict[str, Any]:
        """One instance as plain data."""
        return {
            **{name: int(getattr(self, name)[i]) for name in _LEVELS},
            **{name: getattr(self, name)[:, i].tolist() for name in _CLOCKS},
            **{name: float(getattr(self, name)[i]) for name in _NUMBERS},
            "history": [str(bits) for bits in self.history[:, i].tolist()],  # more than an int64
        }

    def put(self, i: int, data: Mapping[str, Any]) -> None:
        """The inverse of `of`."""
        for name in (*_LEVELS, *_NUMBERS):
            getattr(self, name)[i] = data.get(name, math.nan)  # one that an older state has not
        for name in _CLOCKS:
            # one that an older state has not: what it knew instead
            getattr(self, name)[:, i] = data.get(name, data["since"])
        self.history[:, i] = [int(bits) for bits in data["history"]]
