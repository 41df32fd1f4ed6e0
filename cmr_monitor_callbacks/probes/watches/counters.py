"""Counters that a model keeps itself, read once per window: used where nothing better is seen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.report import Report
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import (
    CACHE_HITS,
    CAPTURED,
    EVICTED,
    RETRIEVALS,
    STORED,
    USING,
    BaseWatch,
    Ways,
)
from cmr_monitor_callbacks.probes.watches.tails import TIMES, Tail, lists_of
from cmr_monitor_callbacks.recording.tally import TIMER_OF_CALL

logger = logging.getLogger(__name__)
MEANT: Final[dict[str, tuple[str, int]]] = {
    # only what is counted in a known unit: ``total_captures`` is calls in one model, states in
    # another
    "states_captured_per_layer": ("capture", CAPTURED),
    "states_stored_per_layer": ("capture", STORED),
    "reconstructions_per_layer": ("reconstruction", USING),
    "total_insertions": ("moves", STORED),
    "total_evictions": ("moves", EVICTED),
    "eviction_count": ("moves", EVICTED),
    "evictions": ("moves", EVICTED),
    "insertions": ("moves", STORED),
    "retrieval_operations": ("retrieval", RETRIEVALS),
    "cache_hits": ("cache", CACHE_HITS),
    "threshold_adjustments": ("optimization", ROW["threshold_adjustments"]),
    "batch_optimizations": ("optimization", ROW["batch_optimizations"]),
    "prefetch_hits": ("optimization", ROW["prefetch_hits"]),
}
"""By the model's key: what kind of thing it counts, and where that goes."""
_COMPONENT: Final = {"moves": "buffer", "cache": "retrieval"}
_AMBIGUOUS: Final = ("total_captures", "total_reconstructions", "total_retrievals")


Read = Callable[[], dict[str, Mapping[Any, Any]]]


class CounterWatch(BaseWatch):
    """Some dictionaries of counters of one object.

    A counter says nothing before it has moved once: many models have fields that nothing ever
    increments. One that falls was set back, and has counted from 0 since. Each number of a
    list of durations is a call.

    Args:
        part: the object.
        without: kinds that are seen better.
        read: gives the dictionaries by name; by default those that the object holds.
    """

    def __init__(self, part: Part, without: set[str], read: Read | None = None) -> None:
        super().__init__(part)
        self._read: Read = read or (lambda: dictionaries(self._owner()))
        self._without = without
        self._last: dict[tuple[str, Any], float] = {}
        self._live: set[str] = set()
        self._tails: dict[tuple[str, str, Any], Tail] = {}
        """Of lists of durations, by dictionary, key and layer."""
        self._lost: set[tuple[str, str]] = set()

    def install(self, ways: Ways) -> None:
        """Take the counters' present values as their start."""
        self._report: Report = ways.report
        for name, counters in self._read().items():
            for key, (kind, place) in MEANT.items():
                if key in counters and kind not in self._without and self._watched(kind, place):
                    self._last.update(
                        ((key, layer), value) for layer, value in numbers_of(counters[key])
                    )
                    of = f"{name}.{key}" if name else key
                    self.source("", "polled", of, f"#{place}")
            for key, layer, values in self._lists(counters):
                self._tails[name, key, layer] = Tail(values)
                of = f"{name}.{key}" if name else key
                timer = key.removesuffix("s")
                self.source(
                    "", "polled", of, f"avg_{timer}", *(f"{timer}_p{q}" for q in (50, 95, 99))
                )
            self.unknown += [
                f"{name}[{key!r}]: it does not say what it counts, calls or states"
                for key in _AMBIGUOUS
                if key in counters and kind_of(key) not in self._without
            ]

    def _watched(self, kind: str, place: int) -> bool:
        kinds = self._report.kinds
        return _COMPONENT.get(kind, kind) in kinds or (place == STORED and "capture" in kinds)

    def poll(self) -> None:
        """Add what the counters rose by."""
        if not self.alive:
            return
        for name, counters in self._read().items():
            self._poll_lists(name, counters)
            found = [
                (key, layer, value, place)
                for key, (kind, place) in MEANT.items()
                if key in counters and kind not in self._without and self._watched(kind, place)
                for layer, value in numbers_of(counters[key])
            ]
            # where one was set back, those beside it were too
            anew = any(value < self._last.get((key, layer), 0) for key, layer, value, _ in found)
            for key, layer, value, place in found:
                last = 0.0 if anew else self._last.get((key, layer), 0.0)
                self._last[key, layer] = value
                self._add(key, layer, value - last, place)

    def _lists(self, counters: Mapping[Any, Any]) -> list[tuple[str, Any, Sequence[Any]]]:
        """Durations that the model keeps of calls that nobody times: key, layer, list."""
        return [
            (key, layer, values)
            for key, (better, place) in TIMES.items()
            if key in counters
            and not better & self._without
            and _timed(place) in self._report.kinds
            for layer, values in lists_of(counters[key]).items()
        ]

    def _poll_lists(self, name: str, counters: Mapping[Any, Any]) -> None:
        for key, layer, values in self._lists(counters):
            new = self._tails.setdefault((name, key, layer), Tail([])).read(values)
            at = self._report.place(layer)
            if new is None and (name, key) not in self._lost:
                self._lost.add((name, key))
                text = f"{name}[{key!r}]: which of its numbers are new, for it drops older ones"
                self.unknown.append(text)
                logger.warning("not known: %s: %s", self.path, text)
            if at is not None:
                call = TIMES[key][1]
                items = [(at + call, float(seconds)) for seconds in new or () if _is_count(seconds)]
                self._report.extend([part for pair in items for part in pair])

    def _add(self, key: str, layer: Any, rose: float, place: int) -> None:
        if rose:
            self._live.add(key)
        at = self._report.place(layer)
        if at is not None and key in self._live:
            self._report.extend((at + place, rose))


def _timed(call: int) -> str:
    return TIMER_OF_CALL[call].removesuffix("_time")


def counts_moves(value: Any) -> bool:
    """Whether a buffer itself counts what it takes in."""
    return any(
        kind == "moves" and place == STORED and key in counters
        for counters in dictionaries(value).values()
        for key, (kind, place) in MEANT.items()
    )


def kind_of(key: str) -> str:
    """What an ambiguous counter would be a counter of."""
    return {"total_captures": "capture", "total_reconstructions": "reconstruction"}.get(
        key, "retrieval"
    )


def numbers_of(value: Any) -> list[tuple[Any, float]]:
    """A counter's values by layer; of the whole, where it is one number."""
    if isinstance(value, Mapping):
        return [(layer, x) for layer, x in list(value.items()) if _is_count(x)]
    return [(None, value)] if _is_count(value) else []


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def dictionaries(value: Any) -> dict[str, Mapping[Any, Any]]:
    """The statistics that an object keeps in dictionaries of its own."""
    return {
        name: item
        for name, item in attributes(value).items()
        if name.endswith("stats") and isinstance(item, Mapping)
    }
