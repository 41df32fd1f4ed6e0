"""What one probe call says, in statistics: the one place that turns fields into what is stored.

Each function takes an event's fields (see ``catalogue.RECORDS``) as numbers, 0-d tensors or None,
and gives the values of the component's statistics, in the order of ``catalogue.STATISTICS``. They
use plain operators only, so that they serve Python numbers and tensors alike, inside
``torch.compile`` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Union

if TYPE_CHECKING:
    from torch import Tensor

Number = Union[float, int, "Tensor", None]
Values = tuple[Number, ...]


def capture(
    attempted: Number, captured: Number, stored: Number, seconds: Number, considered: Number
) -> Values:
    """Statistics of one capture call."""
    return attempted, captured, stored, considered, 1, seconds


def reconstruction(memories_used: Number, quality: Number, seconds: Number) -> Values:
    """Statistics of one reconstruction call."""
    used = None if memories_used is None else memories_used > 0
    return 1, used, memories_used, quality, seconds


def buffer(
    entries: Number,
    capacity: Number,
    nbytes: Number,
    evicted: Number,
    cleared: Number,
    loaded: Number,
) -> Values:
    """Statistics of one look at the buffer."""
    return evicted, cleared, loaded, entries, entries, capacity, nbytes


def retrieval(
    requested: Number, returned: Number, hits: Number, seconds: Number, quality: Number
) -> Values:
    """Statistics of the retrieval operations of one call."""
    with_cache = None if hits is None else requested
    timed = None if seconds is None else requested
    return requested, returned, hits, with_cache, timed, seconds, quality


def timing(
    step: Number,
    data_wait: Number,
    forward: Number,
    backward: Number,
    optimizer: Number,
    monitor: Number,
    passes: Number,
) -> Values:
    """Statistics of the times of one step; only passes that were timed stand below the line."""
    timed = None if forward is None else passes
    return passes, timed, step, data_wait, forward, backward, optimizer, monitor


def throughput(samples: Number, tokens: Number, step: Number, data_wait: Number) -> Values:
    """Statistics of how much one step took in, and in what time."""
    if step is None:
        return None, None, None, None
    wall = step if data_wait is None else step + data_wait
    return (
        samples,
        tokens,
        None if samples is None else wall,
        None if tokens is None else wall,
    )


def errors(count: Number, operations: Number, nonfinite: Number) -> Values:
    """Statistics of errors."""
    return count, operations, nonfinite


STATISTICS_OF: Final[dict[str, Callable[..., Values]]] = {
    "capture": capture,
    "reconstruction": reconstruction,
    "buffer": buffer,
    "retrieval": retrieval,
    "timing": timing,
    "throughput": throughput,
    "errors": errors,
}
"""By component."""


def settled(component: str, fields: tuple[Any, ...]) -> tuple[Any, ...]:
    """An event's fields as they count: a retrieval of no operation has no time per operation.

    >>> settled("retrieval", (0, 0, None, 0.5, None))
    (0, 0, None, None, None)
    """
    if component == "retrieval" and isinstance(fields[0], (int, float)) and fields[0] == 0:
        return (*fields[:3], None, *fields[4:])
    return fields


FIELD_OF_ROW: Final[dict[str, tuple[int | None, ...]]] = {
    "capture": (0, 1, 2, 4, None, 3),
    "reconstruction": (None, 0, 0, 1, 2),
    "buffer": (3, 4, 5, 0, 0, 1, 2),
    "retrieval": (0, 1, 2, 0, 0, 3, 4),
}
"""For each statistic the field that it comes from, where a field may be a tensor; None: it is 1."""

NEEDED_BY_ROW: Final[dict[str, dict[int, int]]] = {"retrieval": {3: 2, 4: 3}}
"""Statistics that count only where another field is given too: that field, by row."""

FLAG_ROWS: Final[dict[str, tuple[int, ...]]] = {"reconstruction": (1,)}
"""Statistics that are 1 where their field is over 0."""


def durations(component: str, fields: tuple[Any, ...]) -> list[tuple[float | None, float]]:
    """What one event adds to each timer of its component: seconds of one, and how often.

    >>> durations("retrieval", (4, 32, None, 0.008, None))
    [(0.002, 4)]
    """
    if component == "capture":
        return [(fields[3], 1)]
    if component == "reconstruction":
        return [(fields[2], 1)]
    if component == "retrieval":
        requested, seconds = fields[0], fields[3]
        return [_each(seconds, requested)]
    if component == "timing":
        step, wait, forward, backward, optimizer, _, passes = fields
        return [(step, 1), (wait, 1), _each(forward, passes), (backward, 1), (optimizer, 1)]
    return []


def _each(seconds: float | None, times: float | None) -> tuple[float | None, float]:
    """Seconds of one of several that took so long together."""
    return (seconds / times, times) if times and seconds is not None else (None, 0)
