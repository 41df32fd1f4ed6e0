"""What was allocated: in the profile as a whole, and in each section."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from cmr_monitor_callbacks.profiling.nesting import Forest, Node, locate
from cmr_monitor_callbacks.profiling.trace import Allocation, Trace


@dataclass
class SectionMemory:
    """Of one call of a section, by device, in bytes.

    Attributes:
        allocated: taken while it ran, whatever was given back.
        peak: the most in use above what was in use when it began.
    """

    allocated: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class _Levels:
    """Bytes in use over time, by device."""

    def __init__(self, allocations: list[Allocation]) -> None:
        self._events: dict[str, list[Allocation]] = defaultdict(list)
        for item in allocations:
            self._events[item.device].append(item)
        self._times = {name: [i.time for i in items] for name, items in self._events.items()}

    def before(self, device: str, time: float) -> int:
        """What was in use just before."""
        at = bisect_left(self._times[device], time)
        first = self._events[device][0]
        return self._events[device][at - 1].total if at else first.total - first.nbytes

    def rows(self) -> dict[str, dict[str, int]]:
        """Of each device: peaks, and what was taken and given back."""
        return {device: _row(device, items) for device, items in sorted(self._events.items())}


def _row(device: str, items: list[Allocation]) -> dict[str, int]:
    peak = max(0, *(item.total for item in items))
    growth = max(0, peak - (items[0].total - items[0].nbytes))
    return {
        # the profiler's total of the CPU holds what earlier profiles of the process saw and is not
        # given back yet; that of a GPU is its allocator's, which knows all
        "peak_bytes": growth if device == "cpu" else peak,
        "peak_growth_bytes": growth,
        "allocated_bytes": sum(item.nbytes for item in items if item.nbytes > 0),
        "freed_bytes": -sum(item.nbytes for item in items if item.nbytes < 0),
        "allocations": sum(item.nbytes > 0 for item in items),
    }


def memory_rows(trace: Trace) -> dict[str, Any]:
    """Of each device: the most in use, and above what was in use at the start; bytes."""
    return _Levels(trace.allocations).rows()


def memory_of(forest: Forest, trace: Trace) -> dict[int, SectionMemory]:
    """What each call of a section allocated, by identity of its node."""
    levels = _Levels(trace.allocations)
    out: dict[int, SectionMemory] = defaultdict(SectionMemory)
    began: dict[tuple[int, str], int] = {}

    def level(node: Node, device: str) -> int:
        key = id(node), device
        if key not in began:
            began[key] = levels.before(device, node.span.start)
        return began[key]

    for item, inside in locate(forest, trace.allocations, lambda a: (a.thread, a.time)):
        for node in inside.around() if inside is not None else ():
            found = out[id(node)]
            if item.nbytes > 0:
                found.allocated[item.device] += item.nbytes
            above = item.total - level(node, item.device)
            found.peak[item.device] = max(found.peak[item.device], above)
    return out
