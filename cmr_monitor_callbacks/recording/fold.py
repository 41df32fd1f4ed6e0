"""Lists of events to statistics: what ``events`` says of one event, for all of a window at once.

Every field of every event of every kind stands in one flat vector, and a *plan* says which of them
goes to which statistic of which layer. The plan depends only on how many events there were and of
which layers, so it mostly serves window after window, and a fold is a dozen array operations.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import RECORDS, UNIT_INTERVAL, Store
from cmr_monitor_callbacks.events import FIELD_OF_ROW, FLAG_ROWS, NEEDED_BY_ROW
from cmr_monitor_callbacks.folding import FIRST_ROW, STORES, TIMER_ROWS, Durations
from cmr_monitor_callbacks.packed import ROW, Packed

Flat = NDArray[np.float64]
Places = NDArray[np.intp]
Items = Mapping[str, Sequence[Any]]

FIELDS: Final[dict[str, tuple[str, ...]]] = {
    # what tends to have fields without data comes first: packing gives up early then
    kind: RECORDS[kind]
    for kind in ("retrieval", "reconstruction", "capture", "buffer")
}
"""Fields of one event by kind."""
STRIDE: Final = {kind: 1 + len(fields) for kind, fields in FIELDS.items()}
"""Items of one event: the layer's column, then the fields."""
_CODES: Final = {
    kind: "".join(
        "d" if field in UNIT_INTERVAL | {"seconds"} else "q" for field in ("column", *fields)
    )
    for kind, fields in FIELDS.items()
}
_TIMED: Final[dict[str, tuple[tuple[int, int | None], ...]]] = {
    "retrieval": ((3, 0),),
    "reconstruction": ((2, None),),
    "capture": ((3, None),),
    "buffer": (),
}
"""Fields that hold durations, and how many operations each was of."""
_LIMIT: Final = 2.0**53 - 1  # whole numbers up to here are exact in float64
_NO_PLACES: Final = np.empty(0, dtype=np.intp)


class Fold:
    """Adds lists of events to statistics.

    Args:
        kinds: of the events, from `FIELDS`.

    >>> from cmr_monitor_callbacks.packed import ROW
    >>> packed, items = Packed.empty(2), {"buffer": [1, 900, 1024, 460800, 5, 0, 0]}
    >>> Fold(["buffer"]).add(packed, items, durations=[])
    True
    >>> float(packed.values[ROW["total_entries"], 1])
    900.0
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = tuple(kinds)
        self._layout = _Layout(self.kinds, [0] * len(self.kinds))
        self._plan = _Plan(self._layout, np.empty(0), 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return Fold, (self.kinds,)  # a plan is made anew, where the monitor goes to another process

    def add(self, packed: Packed, items: Items, durations: Durations) -> bool:
        """Add events.

        Args:
            packed: added to, in place.
            items: by kind, as in `FIELDS`: events one after the other, of each the layer's column
                and the fields; None is no data. A retrieval is of one operation at least.
            durations: given the events' durations.

        Returns:
            whether every number could be added; if not, none was.
        """
        lengths = tuple(len(items[kind]) for kind in self.kinds)
        if not any(lengths):
            return True
        if lengths != self._layout.lengths:
            self._layout = _Layout(self.kinds, lengths)
        layout = self._layout
        given = [items[kind] for kind in self.kinds]
        try:
            numbers = layout.numbers(given)
        except OverflowError:
            return False
        complete = bool(np.minimum.reduce(numbers) >= 0.0)
        if not complete and not _good_where_given(numbers, given):
            return False
        columns = numbers[layout.columns]
        if not self._plan.serves(layout, columns, packed.width):
            self._plan = _Plan(layout, columns, packed.width)
        plan = self._plan
        # NaN is greater than nothing
        if np.logical_or.reduce(numbers > plan.limits):
            return False
        plan.add(packed, numbers, complete)
        plan.add_durations(packed, numbers, durations)
        return True


def _good_where_given(numbers: Flat, items: Sequence[Sequence[Any]]) -> bool:
    """Whether nothing is negative, and every NaN stands for None."""
    missing = np.flatnonzero(numbers != numbers).tolist()
    if not missing or not np.fmin.reduce(numbers) >= 0.0:
        return False
    picked = itemgetter(missing[0], *missing)([*chain.from_iterable(items)])
    none: int = picked.count(None)
    return none == len(picked)


class _Layout:
    """How many events of each kind there are, and so where which field stands."""

    def __init__(self, kinds: Sequence[str], lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        counts = [n // STRIDE[kind] for kind, n in zip(kinds, lengths, strict=True)]
        codes = [_CODES[kind] * count for kind, count in zip(kinds, counts, strict=True)]
        self._packs = [struct.Struct(code).pack for code in codes]
        flat = np.frombuffer("".join(codes).encode(), np.uint8)
        self._floats = np.flatnonzero(flat == ord("d"))
        starts = np.cumsum([0, *lengths])
        self.events: dict[str, Places] = {
            kind: np.arange(start, start + length, STRIDE[kind])
            for kind, start, length in zip(kinds, starts, lengths, strict=False)
        }
        """Where the events of each kind start."""
        self.columns = np.concatenate(list(self.events.values()))

    def numbers(self, items: Sequence[Sequence[Any]]) -> Flat:
        """Items of each kind as numbers one after the other, NaN for None.

        Raises:
            OverflowError: one is too large for any float.
        """
        try:
            packed = [pack(*some) for pack, some in zip(self._packs, items, strict=True)]
        except struct.error:  # None among them, or an int of more than 64 bits
            count = sum(self.lengths)
            return np.fromiter(chain.from_iterable(items), np.float64, count)
        raw = np.frombuffer(b"".join(packed), np.int64)
        numbers = raw.astype(np.float64)
        numbers[self._floats] = raw.view(np.float64)[self._floats]
        return numbers


class _Plan:
    """Which field goes to which statistic of which layer."""

    def __init__(self, layout: _Layout, columns: Flat, width: int) -> None:
        self._layout = layout
        self._columns = columns
        self._width = width
        sources: list[Places] = []
        targets: list[Places] = []
        calls: list[Places] = []
        gauge_sources: list[Places] = []
        gauge_targets: list[Places] = []
        self._flags: list[slice] = []
        self._needed: list[tuple[slice, Places]] = []
        self._timed: list[tuple[int, Places, Places | None, Places]] = []
        self.limits = np.full(int(sum(layout.lengths)), _LIMIT)
        """The greatest value allowed, by place."""
        start, length = 0, 0
        for kind, events in layout.events.items():
            if not len(events):
                continue
            at = columns[start : start + len(events)].astype(np.intp)
            start += len(events)
            needed, flags = NEEDED_BY_ROW.get(kind, {}), FLAG_ROWS.get(kind, ())
            for row, (field, store) in enumerate(
                zip(FIELD_OF_ROW[kind], STORES[kind], strict=True)
            ):
                target = (FIRST_ROW[kind] + row) * width + at
                if field is None:
                    calls.append(target)
                elif store is Store.GAUGE:
                    gauge_sources.append(events + 1 + field)
                    gauge_targets.append(target)
                else:
                    stretch = slice(length, length + len(events))
                    length += len(events)
                    sources.append(events + 1 + field)
                    targets.append(target)
                    if row in flags:
                        self._flags.append(stretch)
                    if row in needed:
                        self._needed.append((stretch, events + 1 + needed[row]))
            for timer, (seconds, operations) in zip(TIMER_ROWS[kind], _TIMED[kind], strict=True):
                weights = None if operations is None else events + 1 + operations
                self._timed.append((timer, events + 1 + seconds, weights, at))
            for i, name in enumerate(FIELDS[kind]):
                if name in UNIT_INTERVAL:
                    self.limits[events + 1 + i] = 1.0
        self._sources, self._targets = _joined(sources), _joined(targets)
        self._gauge_sources, self._gauge_targets = _joined(gauge_sources), _joined(gauge_targets)
        self._size = size = (len(ROW)) * width
        self._calls = np.bincount(_joined(calls), minlength=size).astype(np.float64)
        given = np.bincount(np.concatenate((self._targets, self._gauge_targets)), minlength=size)
        self._samples = given + self._calls

    def serves(self, layout: _Layout, columns: Flat, width: int) -> bool:
        """Whether this is the plan for such events."""
        return (
            layout is self._layout
            and width == self._width
            and bool(np.logical_and.reduce(columns == self._columns))
        )

    def add(self, packed: Packed, numbers: Flat, complete: bool) -> None:
        """Add events to statistics; where they are complete no number is missing."""
        values, samples = packed.values.reshape(-1), packed.samples.reshape(-1)
        taken = numbers[self._sources]
        # where a place comes twice, what stands later stays
        gauge_targets, gauges = self._gauge_targets, numbers[self._gauge_sources]
        if complete:
            samples += self._samples
        else:
            given = taken == taken
            for stretch, places in self._needed:
                given[stretch] &= numbers[places] == numbers[places]
            taken[~given] = 0.0
            known = gauges == gauges
            gauge_targets, gauges = gauge_targets[known], gauges[known]
            where = np.concatenate((self._targets[given], gauge_targets))
            samples += np.bincount(where, minlength=self._size) + self._calls
        for stretch in self._flags:
            taken[stretch] = taken[stretch] > 0
        values += np.bincount(self._targets, taken, self._size)
        values += self._calls
        values[gauge_targets] = gauges

    def add_durations(self, packed: Packed, numbers: Flat, durations: Durations) -> None:
        """Add the durations of the events to a list, and to the layers' histograms."""
        for timer, places, operations, columns in self._timed:
            seconds = numbers[places]
            weights = None if operations is None else numbers[operations]
            known = seconds == seconds
            if not known.all():
                seconds, columns = seconds[known], columns[known]
                weights = None if weights is None else weights[known]
            if len(seconds):
                each = seconds if weights is None else seconds / weights
                durations.append((timer, each, weights))
                if packed.by_layer is not None:
                    packed.by_layer.put(timer, columns, each, weights)


def _joined(places: list[Places]) -> Places:
    return np.concatenate(places) if places else _NO_PLACES
