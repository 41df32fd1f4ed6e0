"""Lists of durations that a model itself appends to: at each look only what is new is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

from cmr_monitor_callbacks.recording.tally import CALL

TIMES: Final[dict[str, tuple[frozenset[str], int]]] = {
    "capture_times": (frozenset({"capture", "calls"}), CALL["capture"]),
    "reconstruction_times": (frozenset({"reconstruction"}), CALL["reconstruction"]),
    "retrieval_times": (frozenset({"retrieval"}), CALL["retrieval"]),
}
"""By the model's key: kinds that see the same, and better; the call that each number is of."""
_MARK: Final = 16


class Tail:
    """What is new in a list that grows at its end, or in a deque.

    One that is shorter than it was and holds nothing of what was seen was emptied: all of it is
    new. One that drops its head is told by the last numbers that were seen; where these are not in
    it, or may be in several places, it cannot be told.

    >>> tail = Tail([0.5])
    >>> tail.read([0.5, 0.25, 0.125]), tail.read([0.125, 2.0]), tail.read([4.0])
    ([0.25, 0.125], [2.0], [4.0])
    >>> tail.read([1.0, 2.0]) is None
    True
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._note(values)

    def _note(self, values: Sequence[Any]) -> None:
        self._seen = len(values)
        self._mark = _from(values, max(0, self._seen - _MARK), self._seen)

    def read(self, values: Sequence[Any]) -> list[Any] | None:
        """What came since the last call; None: that cannot be told."""
        new, count = None, len(values)
        full = isinstance(values, deque) and count == values.maxlen
        begin = self._seen - len(self._mark)
        if not full and _from(values, begin, self._seen) == self._mark:  # nothing was dropped
            new = _from(values, self._seen, count)
        if new is None and self._mark:
            new = self._after_mark(list(values))
        if new is None and count < self._seen:
            new = list(values)
        self._note(values)
        return new

    def _after_mark(self, values: list[Any]) -> list[Any] | None:
        """What follows the last numbers that were seen; only the first may have been dropped."""
        size = len(self._mark)
        ends = [
            end
            for end in range(1, len(values) + 1)
            if values[max(0, end - size) : end] == self._mark[-end:]
        ]
        return values[ends[0] :] if len(ends) == 1 else None


def _from(values: Sequence[Any], start: int, end: int) -> list[Any]:
    if isinstance(values, list):
        return values[start:end]
    return list(islice(values, start, end))


def lists_of(value: Any) -> dict[Any, Sequence[Any]]:
    """Lists by layer; of the whole, where it is one list."""
    if isinstance(value, (list, deque)):
        return {None: value}
    if isinstance(value, Mapping):
        return {layer: x for layer, x in value.items() if isinstance(x, (list, deque))}
    return {}
