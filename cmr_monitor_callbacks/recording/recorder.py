"""The recorder: a flat Python list for each kind of event, checked and turned into arrays once per
window.

Recording is one call of ``list.extend`` with ``(slot, *fields)``; everything else waits. That call
is atomic under the interpreter lock, so probes may be called from several threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import REAL_FIELDS, RECORDS, UNIT_INTERVAL


@dataclass(frozen=True)
class InvalidSample:
    """One value that was not taken.

    Attributes:
        kind: kind of event, a key of ``catalogue.RECORDS``.
        field: name of the field.
        slot: column of the layer.
        value: what was given, as text.
        reason: what is wrong with it.
    """

    kind: str
    field: str
    slot: int
    value: str
    reason: str

    @property
    def nonfinite(self) -> bool:
        """Whether it was a number, but NaN or infinite."""
        return self.reason == "not finite"


@dataclass(frozen=True)
class Batch:
    """Events of one kind, checked.

    Attributes:
        events: shape ``(n, fields)``, float64; NaN is no data.
        slots: shape ``(n,)``, columns of the events' layers.
        invalid: values that were taken out.
    """

    events: NDArray[np.float64]
    slots: NDArray[np.intp]
    invalid: tuple[InvalidSample, ...] = ()


class Recorder:
    """Flat lists of events, one for each kind.

    >>> recorder = Recorder()
    >>> recorder.sink("reconstruction")((1, 8, 0.9, 0.002))
    >>> batch = recorder.drain("reconstruction")
    >>> batch.events.tolist(), batch.slots.tolist()
    ([[8.0, 0.9, 0.002]], [1])
    """

    def __init__(self) -> None:
        self._lists: dict[str, list[Any]] = {kind: [] for kind in RECORDS}
        self._whole = {
            kind: [i for i, name in enumerate(fields) if name not in REAL_FIELDS]
            for kind, fields in RECORDS.items()
        }
        self._unit = {
            kind: [i for i, name in enumerate(fields) if name in UNIT_INTERVAL]
            for kind, fields in RECORDS.items()
        }

    def sink(self, kind: str) -> Callable[[Iterable[Any]], None]:
        """Where events of a kind go: call it with ``(slot, *fields)``."""
        return self._lists[kind].extend

    def drain(self, kind: str) -> Batch | None:
        """Take out the events of a kind; None if there are none."""
        flat = self._lists[kind]
        count = len(flat)
        if not count:
            return None
        taken = flat[:count]
        del flat[:count]  # not clear(): another thread may have added meanwhile
        width = len(RECORDS[kind]) + 1
        try:
            table = np.fromiter(taken, np.float64, count).reshape(-1, width)
        except (TypeError, ValueError, OverflowError):
            return self._sift(kind, taken)
        if not self._sound(kind, table, taken):
            return self._sift(kind, taken)
        return Batch(table[:, 1:], table[:, 0].astype(np.intp))

    @property
    def pending(self) -> bool:
        """Whether anything waits to be drained."""
        return any(self._lists.values())

    def clear(self) -> None:
        """Forget what was recorded."""
        for flat in self._lists.values():
            flat.clear()

    def _sound(self, kind: str, table: NDArray[np.float64], taken: list[Any]) -> bool:
        """Whether every value is in range and every NaN stands for None: whole-array tests."""
        if np.fmin.reduce(table, axis=None) < 0 or np.fmax.reduce(table, axis=None) == math.inf:
            return False
        fields = table[:, 1:]
        unit = self._unit[kind]
        if unit and (fields[:, unit] > 1).any():
            return False
        absent = np.flatnonzero(np.isnan(table.ravel())).tolist()
        if absent and set(_pick(absent, taken)) != {None}:
            return False
        counts = fields[:, self._whole[kind]]
        return not (counts > np.floor(counts)).any()

    def _sift(self, kind: str, taken: list[Any]) -> Batch:
        """Value by value, for the rare window that holds a bad one."""
        width = len(RECORDS[kind]) + 1
        rows, slots, invalid = [], [], []
        for start in range(0, len(taken), width):
            slot, *values = taken[start : start + width]
            row = []
            for name, value in zip(RECORDS[kind], values, strict=True):
                number, reason = _check(name, value)
                row.append(number)
                if reason:
                    invalid.append(InvalidSample(kind, name, slot, repr(value)[:80], reason))
            rows.append(row)
            slots.append(slot)
        events = np.array(rows, dtype=np.float64).reshape(-1, width - 1)
        return Batch(events, np.array(slots, dtype=np.intp), tuple(invalid))


def _pick(indices: list[int], values: list[Any]) -> tuple[Any, ...]:
    if len(indices) == 1:
        return (values[indices[0]],)
    picked: tuple[Any, ...] = itemgetter(*indices)(values)
    return picked


def _check(name: str, value: Any) -> tuple[float, str]:
    """The value as a float, or NaN and what is wrong with it."""
    if value is None:
        return math.nan, ""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan, "not a number"
    if not math.isfinite(number):
        return math.nan, "not finite"
    if number < 0:
        return math.nan, "negative"
    if name in UNIT_INTERVAL and number > 1:
        return math.nan, "over 1"
    if name not in REAL_FIELDS and number != math.floor(number):
        return math.nan, "not a whole number"
    return number, ""
