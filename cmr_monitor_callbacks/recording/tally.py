"""The tally: what a monitor sees by itself, as pairs of a place and a number in one flat list.

A probe call is an event of a fixed shape. What is seen by watching somebody else's methods is not:
one call shows a count and a duration, the next look shows a gauge. So each number says where it
belongs: ``column * PLACES + place``, the layer's column and a statistic or a timer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS, Store
from cmr_monitor_callbacks.folding import Durations
from cmr_monitor_callbacks.packed import ROW, TIMER_ROW, Packed

STATISTIC_PLACES: Final = len(STATISTICS)
_TIMED: Final = ("capture", "reconstruction", "retrieval")
PLACES: Final = STATISTIC_PLACES + len(_TIMED)
"""Places of one layer: the statistics, then the durations of one call of each kind."""

SECONDS: Final = {kind: STATISTIC_PLACES + i for i, kind in enumerate(_TIMED)}
"""Where the duration of a call of each kind goes: to its sum and to its histogram."""

_SUM_OF_TIMER: Final = np.array([ROW[f"{kind}_seconds"] for kind in _TIMED])
_HISTOGRAM_OF_TIMER: Final = [TIMER_ROW[f"{kind}_time"] for kind in _TIMED]
_RETRIEVALS_TIMED: Final = ROW["retrievals_timed"]
_RETRIEVAL: Final = _TIMED.index("retrieval")
_ENTRIES, _ENTRIES_SEEN = ROW["total_entries"], ROW["entries_seen"]
_IS_GAUGE: Final = np.array([s.store is Store.GAUGE for s in STATISTICS])
_LIMIT: Final = np.full(PLACES, 2.0**53 - 1)
_LIMIT[ROW["reconstruction_quality_sum"]] = _LIMIT[ROW["retrieval_quality_sum"]] = 1.0
_LEAST: Final = np.zeros(PLACES)
_LEAST[ROW["reconstruction_similarity_sum"]] = -1.0
_LIMIT[ROW["reconstruction_similarity_sum"]] = 1.0
_COMPONENT: Final = np.array([*(s.component for s in STATISTICS), *_TIMED])
assert {owner for owner, _ in TIMERS} >= set(_TIMED)

Rejected = tuple[str, int, float]
"""Name of the statistic, column and number of what was not taken."""


def add_tally(
    packed: Packed, items: Sequence[Any], durations: Durations, without: Collection[str] = ()
) -> list[Rejected]:
    """Add pairs of place and number.

    Args:
        packed: added to, in place; wide enough for every column.
        items: place and number in turn.
        durations: given the durations.
        without: components of which nothing is taken.

    Returns:
        numbers that were left out: negative, not finite or too large.

    >>> packed = Packed.empty(2)
    >>> add_tally(packed, [PLACES + ROW["states_stored"], 3, ROW["capacity"], 64], [])
    []
    >>> [float(packed.values[ROW[n], c]) for n, c in (("states_stored", 1), ("capacity", 0))]
    [3.0, 64.0]
    """
    flat = np.fromiter(items, np.float64, len(items))
    cells, numbers = flat[::2].astype(np.intp), flat[1::2]
    columns, places = np.divmod(cells, PLACES)
    if without:
        kept = ~np.isin(_COMPONENT[places], list(without))
        columns, places, numbers = columns[kept], places[kept], numbers[kept]
    fine = (numbers >= _LEAST[places]) & (numbers <= _LIMIT[places])
    rejected: list[Rejected] = []
    if not fine.all():
        wrong = zip(places[~fine], columns[~fine], numbers[~fine], strict=True)
        rejected = [(_name(place), int(column), float(x)) for place, column, x in wrong]
        columns, places, numbers = columns[fine], places[fine], numbers[fine]
    timed = places >= STATISTIC_PLACES
    if timed.any():
        timers = places[timed] - STATISTIC_PLACES
        _add_durations(packed, timers, columns[timed], numbers[timed], durations)
        places[timed] = _SUM_OF_TIMER[timers]
    _add(packed, places, columns, numbers)
    return rejected


def _name(place: int) -> str:
    if place < STATISTIC_PLACES:
        return STATISTICS[place].name
    return f"{_TIMED[place - STATISTIC_PLACES]}_seconds"


def _add_durations(
    packed: Packed,
    timers: NDArray[np.intp],
    columns: NDArray[np.intp],
    seconds: NDArray[np.float64],
    durations: Durations,
) -> None:
    for i, row in enumerate(_HISTOGRAM_OF_TIMER):
        mine = timers == i
        if mine.any():
            durations.append((row, seconds[mine], None))
        if i == _RETRIEVAL and mine.any():
            counts = np.bincount(columns[mine], minlength=packed.width)
            packed.values[_RETRIEVALS_TIMED] += counts
            packed.samples[_RETRIEVALS_TIMED] += counts


def _add(
    packed: Packed,
    places: NDArray[np.intp],
    columns: NDArray[np.intp],
    numbers: NDArray[np.float64],
) -> None:
    size, width = packed.values.size, packed.width
    where = places * width + columns
    values, samples = packed.values.reshape(-1), packed.samples.reshape(-1)
    samples += np.bincount(where, minlength=size)
    gauges = _IS_GAUGE[places]
    if gauges.any():
        values[where[gauges]] = numbers[gauges]  # where a place comes twice, what came later stays
        entries = places == _ENTRIES
        seen = np.bincount(columns[entries], numbers[entries], width)
        packed.values[_ENTRIES_SEEN] += seen
        packed.samples[_ENTRIES_SEEN] += np.bincount(columns[entries], minlength=width)
        where, numbers = where[~gauges], numbers[~gauges]
    values += np.bincount(where, numbers, size)
