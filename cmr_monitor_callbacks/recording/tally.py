"""The tally: what a monitor sees by itself, as pairs of a place and a number in one flat list.

A probe call is an event of a fixed shape. What is seen by watching somebody else's methods is not:
one call shows a count and a duration, the next look shows a gauge. So each number says where it
belongs: ``column * PLACES + place``, the layer's column and a statistic, a timer or a *call*. A
call is what happens so often that it must be one pair: its number is its duration, and the counts
that it stands for are known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, Store
from cmr_monitor_callbacks.folding import Durations
from cmr_monitor_callbacks.packed import ROW, TIMER_ROW, Packed

_STATISTICS: Final = len(STATISTICS)
_CALLS: Final[dict[str, tuple[str, dict[str, int]]]] = {
    # by name: the timer (of the component), and what one such call counts
    "capture": ("capture", {"capture_calls": 1}),
    "state taken": (
        "capture",
        {"states_attempted": 1, "states_captured": 1, "states_stored": 1, "capture_calls": 1},
    ),
    "state refused": (
        "capture",
        {"states_attempted": 1, "states_captured": 1, "states_stored": 0, "capture_calls": 1},
    ),
    "state taken in a capture": (
        "",
        {"states_attempted": 1, "states_captured": 1, "states_stored": 1},
    ),
    "state refused in a capture": (
        "",
        {"states_attempted": 1, "states_captured": 1, "states_stored": 0},
    ),
    "reconstruction": ("reconstruction", {"reconstruction_calls": 1}),
    "retrieval": ("retrieval", {"total_retrievals": 1, "retrievals_timed": 1}),
    "cache hit": ("", {"cache_hits": 1, "cache_operations": 1}),
    "cache miss": ("", {"cache_hits": 0, "cache_operations": 1}),
    "memories used": ("", {}),
}
TIMER_OF_CALL: Final = {
    _STATISTICS + i: f"{timer}_time" for i, (timer, _) in enumerate(_CALLS.values()) if timer
}
"""By the place of a call with a duration, its timer."""
_NOT_TIMED: Final = {
    # what such a call counts where nobody took its time
    "capture": {"capture_calls": 1},
    "state taken": _CALLS["state taken"][1],
    "state refused": _CALLS["state refused"][1],
    "reconstruction": {"reconstruction_calls": 1},
    "retrieval": {"total_retrievals": 1},
}
_CALLS.update({f"{name}, not timed": ("", counts) for name, counts in _NOT_TIMED.items()})
CALL: Final = {name: _STATISTICS + i for i, name in enumerate(_CALLS)}
"""Places of calls, by name. ``memories used`` is the number that one reconstruction read."""
UNTIMED: Final = {CALL[name]: CALL[f"{name}, not timed"] for name in _NOT_TIMED}
"""By the place of a call with a duration, that of one without; its number is 0."""
PLACES: Final = _STATISTICS + len(CALL)
"""Places of one layer."""

_USED: Final = CALL["memories used"]
_ADDS: Final = np.zeros((_STATISTICS, PLACES - _STATISTICS))
"""What one call adds to each statistic."""
_GIVES: Final = np.zeros_like(_ADDS)
"""Whether it gives a sample of each."""
_TIMED_CALLS: Final[list[tuple[int, int, int]]] = []
"""Place, statistic of the seconds, and histogram of each call that has a duration."""
for _call, (_timer, _counts) in _CALLS.items():
    _place = CALL[_call]
    for _statistic, _amount in _counts.items():
        _ADDS[ROW[_statistic], _place - _STATISTICS] = _amount
        _GIVES[ROW[_statistic], _place - _STATISTICS] = 1
    if _timer:
        _GIVES[ROW[f"{_timer}_seconds"], _place - _STATISTICS] = 1
        _TIMED_CALLS.append((_place, ROW[f"{_timer}_seconds"], TIMER_ROW[f"{_timer}_time"]))
for _statistic in ("total_reconstructions", "memories_used_sum"):
    _GIVES[ROW[_statistic], _USED - _STATISTICS] = 1

_GAUGE_ROWS: Final = [i for i, s in enumerate(STATISTICS) if s.store is Store.GAUGE]
_FIRST_GAUGE, _LAST_GAUGE = _GAUGE_ROWS[0], _GAUGE_ROWS[-1]
_ENTRIES, _ENTRIES_SEEN = ROW["total_entries"], ROW["entries_seen"]
_LIMIT: Final = np.full(PLACES, 2.0**53 - 1)
_LEAST: Final = np.zeros(PLACES)
for _statistic, _least in (
    ("reconstruction_quality_sum", 0.0),
    ("retrieval_quality_sum", 0.0),
    ("reconstruction_similarity_sum", -1.0),
    ("retrieval_similarity_sum", -1.0),
):
    _LIMIT[ROW[_statistic]], _LEAST[ROW[_statistic]] = 1.0, _least
_OWNER: Final = {s.name: s.component for s in STATISTICS}
_COMPONENT: Final = np.array(
    [
        *("holds" if s.store is Store.GAUGE else s.component for s in STATISTICS),
        *(_OWNER[next(iter(counts), "memories_used_sum")] for _, counts in _CALLS.values()),
    ]
)

Rejected = tuple[str, str, int, float]
"""Component and name of the statistic, column and number of what was not taken."""


def add_tally(
    packed: Packed, items: Sequence[Any], durations: Durations, without: Collection[str] = ()
) -> list[Rejected]:
    """Add pairs of place and number.

    Args:
        packed: added to, in place; wide enough for every column.
        items: place and number in turn.
        durations: given the durations.
        without: components of which nothing is taken; ``holds`` stands for the gauges.

    Returns:
        numbers that were left out: negative, not finite or too large.

    >>> packed, taken = Packed.empty(2), CALL["state taken"]
    >>> add_tally(packed, [PLACES + taken, 0.002, PLACES + taken, 0.001], [])
    []
    >>> [float(packed.values[ROW[name], 1]) for name in ("states_stored", "capture_seconds")]
    [2.0, 0.003]
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
        wrong = zip(places[~fine].tolist(), columns[~fine].tolist(), numbers[~fine], strict=True)
        rejected = [(str(_COMPONENT[p]), _name(p), column, float(x)) for p, column, x in wrong]
        columns, places, numbers = columns[fine], places[fine], numbers[fine]
    where = places * packed.width + columns
    size = PLACES * packed.width
    counts = np.bincount(where, minlength=size).reshape(PLACES, -1)
    sums = np.bincount(where, numbers, size).reshape(PLACES, -1)
    packed.values += sums[:_STATISTICS] + _ADDS @ counts[_STATISTICS:]
    packed.samples += counts[:_STATISTICS] + _GIVES @ counts[_STATISTICS:]
    _put_gauges(packed, places, columns, numbers, counts, sums)
    if counts[_USED].any():
        used = (places == _USED) & (numbers > 0)
        packed.values[ROW["memories_used_sum"]] += sums[_USED]
        packed.values[ROW["total_reconstructions"]] += np.bincount(
            columns[used], minlength=packed.width
        )
    for place, row, timer in _TIMED_CALLS:
        if counts[place].any():
            packed.values[row] += sums[place]
            here = places == place
            durations.append((timer, numbers[here], None))
            if packed.by_layer is not None:
                packed.by_layer.put(timer, columns[here], numbers[here])
    return rejected


def _name(place: int) -> str:
    if place < _STATISTICS:
        return STATISTICS[place].name
    return next(name for name, at in CALL.items() if at == place)


def _put_gauges(
    packed: Packed,
    places: NDArray[np.intp],
    columns: NDArray[np.intp],
    numbers: NDArray[np.float64],
    counts: NDArray[Any],
    sums: NDArray[Any],
) -> None:
    """Gauges keep the last value; where a place comes twice, what came later stays."""
    if not counts[_FIRST_GAUGE : _LAST_GAUGE + 1].any():
        return
    gauges = (places >= _FIRST_GAUGE) & (places <= _LAST_GAUGE)
    packed.values[places[gauges], columns[gauges]] = numbers[gauges]
    packed.values[_ENTRIES_SEEN] += sums[_ENTRIES]
    packed.samples[_ENTRIES_SEEN] += counts[_ENTRIES]
