"""Numbers that a user's own function reads from the model, once per window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cmr_monitor_callbacks.catalogue import BY_NAME, STATISTICS, Store, canonical
from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import BaseWatch, Ways

Read = Callable[[Any], Mapping[str, Any]]


class ReadingWatch(BaseWatch):
    """A function from the model to numbers by metric: counters so far, gauges now.

    Args:
        part: the model.
        read: given the model; for each metric a number, or numbers by layer.
    """

    def __init__(self, part: Part, read: Read) -> None:
        super().__init__(part)
        self._read = read
        self._last: dict[tuple[int, Any], float] = {}

    def install(self, ways: Ways) -> None:
        """Take the counters' present values as their start."""
        self._report = ways.report
        for name, place, layer, value in self._numbers():
            self._last[place, layer] = value
            self.source("", "polled", "probes.read", name)

    def poll(self) -> None:
        """Add what counters rose by, and put gauges."""
        for _, place, layer, value in self._numbers():
            at = self._report.place(layer)
            if at is None:
                continue
            if STATISTICS[place].store is Store.GAUGE:
                self._report.extend((at + place, value))
                continue
            last = self._last.get((place, layer), 0.0)
            self._last[place, layer] = value
            self._report.extend((at + place, value - last if value >= last else value))

    def _numbers(self) -> list[tuple[str, int, Any, float]]:
        found = []
        for name, value in self._read(self._owner()).items():
            place, scale = _place(name)
            pairs = value.items() if isinstance(value, Mapping) else [(None, value)]
            found += [(canonical(name), place, layer, float(x) * scale) for layer, x in pairs]
        return found


def _place(name: str) -> tuple[int, float]:
    """Where a metric's number goes, and what to multiply it by.

    Raises:
        CMRMonitorError: it is no counter and no gauge; averages and rates follow from those.
    """
    info = BY_NAME[canonical(name)]
    if info.name == "memory_size_mb":
        return ROW["memory_bytes"], float(2**20)
    if info.numerator in ROW and not info.denominator:
        return ROW[info.numerator], 1.0
    raise CMRMonitorError(
        f"probes.read gives {name!r}, which follows from others; give the counts that it is made of"
    )
