"""What a user tracks by name: one flat list that any thread extends, worked out once per window."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Final

import numpy as np
import torch

from cmr_monitor_callbacks.custom import MOST, Table, Tracked, as_table, check_name, merged
from cmr_monitor_callbacks.locks import Lock, locked
from cmr_monitor_callbacks.recording.recorder import InvalidSample, safe_text

logger = logging.getLogger(__name__)
_STRIDE: Final = 3
_GREATEST: Final = 1e300
"""Greatest size of a value: sums of them stay finite."""
_TOO_MANY: Final = f"a name too many: a run has {MOST} at most"


class Tracking:
    """Numbers by name: the window in hand, the one that has ended, and the run.

    Args:
        lock: held while what was tracked is worked out.
        wall: gives seconds since the Unix epoch.

    >>> tracking = Tracking(Lock(), lambda: 7.0)
    >>> tracking.add("grad_norm", 3)
    >>> tracking.add("grad_norm", torch.tensor(5.0))
    >>> tracking.fold()
    []
    >>> tracking.close()
    >>> tracking.finish()["grad_norm"].mean
    4.0
    """

    def __init__(self, lock: Lock, wall: Callable[[], float]) -> None:
        self.lock = lock
        self._wall = wall
        self._items: list[Any] = []
        self._slots: dict[str, int] = {}
        self._invalid: list[InvalidSample] = []
        self._told: set[str] = set()
        self._naming = Lock()
        self._window: dict[str, Tracked] = {}
        self._closed: dict[str, Tracked] = {}
        self.run: dict[str, Tracked] = {}
        """Since the start, of all ranks; a new mapping with each window."""

    def add(self, name: str, value: Any, timestamp: float | None = None) -> None:
        """Add a sample; from any thread. See `CMRPerformanceMonitor.track_metric`."""
        try:
            slot = self._slots[name]
        except (KeyError, TypeError):
            slot = self._slot_of(name)
        if type(value) is not float or timestamp is not None:
            wrong = self._add_checked(name, slot, value, timestamp)
        elif slot < 0:
            wrong = _TOO_MANY
        else:
            self._items.extend((slot, value, self._wall()))
            return
        if wrong:
            self._refuse(name, _text_of(value), wrong)

    def _slot_of(self, name: Any) -> int:
        """The slot of a new name; -1 where there are too many."""
        if len(self._slots) >= MOST and isinstance(name, str):
            return -1
        name = check_name(name)
        with self._naming:  # two threads may come with new names at once
            if name not in self._slots and len(self._slots) >= MOST:
                return -1
            return self._slots.setdefault(name, len(self._slots))

    def _add_checked(self, name: str, slot: int, value: Any, timestamp: Any) -> str:
        """Add a sample that is not plain; gives back what is wrong with it."""
        if slot < 0:
            return _TOO_MANY
        number, wrong = host_number(value)
        if wrong:
            return wrong
        time = self._wall()
        if timestamp is not None:
            time, wrong = host_number(timestamp)
            if wrong or not 0 <= time < math.inf:
                return f"given with a timestamp that is no time since 1970: {_text_of(timestamp)}"
        self._items.extend((slot, number, time))
        return ""

    def _refuse(self, name: str, value: str, reason: str) -> None:
        self._invalid.append(InvalidSample("custom", name, 0, value, reason))
        kind = reason if reason == _TOO_MANY else name
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("track_metric(%r, %s) was not taken: %s", name, value, reason)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that were tracked in this process, in order of arrival."""
        return tuple(self._slots)

    @property
    def pending(self) -> bool:
        """Whether the window in hand has a sample, or one waits to be worked out."""
        return bool(self._items or self._window)

    @locked
    def fold(self) -> list[InvalidSample]:
        """Work out what was tracked.

        Returns:
            what was not taken since the last call.
        """
        taken = tuple(self._items)
        del self._items[: len(taken)]  # other threads go on adding
        if taken:
            self._fold(np.fromiter(taken, np.float64, len(taken)).reshape(-1, _STRIDE))
        invalid = self._invalid[:]
        del self._invalid[: len(invalid)]
        return invalid

    def _fold(self, rows: Table) -> None:
        names = self.names
        fine = np.abs(rows[:, 1]) <= _GREATEST
        for slot, value, _ in rows[~fine].tolist():
            reason = "out of range" if math.isfinite(value) else "not finite"
            self._refuse(names[int(slot)], repr(value), reason)
        self._window = merged(self._window, _by_name(rows[fine], names))

    def drop(self) -> None:
        """Forget what was not worked out yet."""
        del self._items[:]

    @locked
    def clear(self) -> None:
        """Forget every number; names stay."""
        del self._items[:]
        del self._invalid[:]
        self._window, self._closed, self.run = {}, {}, {}

    def forget_names(self) -> None:
        """Forget every number and name."""
        self.clear()
        self._slots, self._told = {}, set()

    # -- windows ----------------------------------------------------------------------------

    @locked
    def close(self) -> None:
        """End the window; a new one begins at once."""
        self._closed, self._window = merged(self._closed, self._window), {}

    @locked
    def send(self, names: Sequence[str]) -> Table:
        """End the window of these names; what has another waits until ranks have agreed on it."""
        if len(names) >= MOST:
            for name in [name for name in self._window if name not in names]:
                lost = self._window.pop(name)
                self._refuse(name, repr(lost.last), _TOO_MANY)
                self._invalid.extend(self._invalid[-1:] * (int(lost.samples) - 1))
        sent = {name: self._window.pop(name) for name in names if name in self._window}
        self._closed = merged(self._closed, sent)
        return as_table(sent, names)

    @locked
    def finish(self, everybody: Mapping[str, Tracked] | None = None) -> dict[str, Tracked]:
        """Add the window that has ended to the run.

        Args:
            everybody: its numbers of all ranks; None: there are those of this process alone.

        Returns:
            the window's numbers by name.
        """
        mine, self._closed = self._closed, {}
        window = mine if everybody is None else dict(everybody)
        self.run = merged(self.run, window)
        return window

    @locked
    def in_hand(self) -> tuple[dict[str, Tracked], dict[str, Tracked]]:
        """The window begun, and the run with it; ends nothing."""
        window = merged(self._closed, self._window)
        return window, merged(self.run, window)

    # -- checkpoints --------------------------------------------------------------------------

    @locked
    def state(self, *, alone: bool) -> dict[str, Any]:
        """Plain data: the run, and (with one process) the window begun."""
        parts = {"run": self.run, "window": self._window if alone else {}}
        return {part: {n: list(row) for n, row in rows.items()} for part, rows in parts.items()}

    @locked
    def load(self, state: Mapping[str, Any], *, first: bool) -> None:
        """The inverse of `state`.

        Args:
            state: what `state` gave.
            first: whether this process takes over the window begun.
        """
        self.clear()
        self.run = {name: Tracked(*row) for name, row in state["run"].items()}
        if first:
            self._window = {name: Tracked(*row) for name, row in state["window"].items()}
        for name in (*self.run, *self._window):
            self._slots.setdefault(name, len(self._slots))


def _by_name(rows: Table, names: Sequence[str]) -> dict[str, Tracked]:
    """Samples (slot, value, time), shape ``(samples, 3)``, put together by name."""
    # by slot, then by time; of several of one time the one given last comes last
    ordered = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
    slots, values, times = ordered.T
    begins = np.flatnonzero(np.diff(slots, prepend=-1.0))
    if not len(begins):
        return {}
    ends = np.append(begins[1:], len(slots)) - 1
    columns = (
        1.0 + ends - begins,
        np.add.reduceat(values, begins),
        np.minimum.reduceat(values, begins),
        np.maximum.reduceat(values, begins),
        values[ends],
        times[ends],
    )
    found = zip(slots[begins].astype(int).tolist(), np.stack(columns, axis=1).tolist(), strict=True)
    return {names[slot]: Tracked(*row) for slot, row in found}


def host_number(value: Any) -> tuple[float, str]:
    """A number that the host knows; NaN and the reason where it is none.

    >>> host_number(torch.tensor(2)), host_number("2"), host_number(True)
    ((2.0, ''), (nan, 'not a number'), (nan, 'not a number'))
    """
    if isinstance(value, torch.Tensor):
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.dim():
            return math.nan, "not a plain tensor of no dimension"
        if value.device.type != "cpu":
            return math.nan, (
                f"on {value.device}: reading it would wait for the device; give its .item()"
            )
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return math.nan, "not a number"
    try:
        return float(value), ""
    except OverflowError:
        return math.nan, "out of range"


def _text_of(value: Any) -> str:
    """A value for people; what is on a device is not read."""
    if isinstance(value, torch.Tensor):
        return f"<tensor of shape {tuple(value.shape)} on {value.device}>"
    return safe_text(value)
