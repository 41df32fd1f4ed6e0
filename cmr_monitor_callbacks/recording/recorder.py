"""The recorder: a flat list for each kind of event, extended by probes, emptied once per window.

A probe call adds one tuple of plain Python numbers to a list, and nothing else: what the numbers
mean is worked out for all events at once (`tables`). What is no plain number takes the slow way,
`Recorder.add_any`, which checks each value.

Extending a list is one step under the interpreter lock, so probes may be called from any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks import events
from cmr_monitor_callbacks.catalogue import REAL_FIELDS, RECORDS, UNIT_INTERVAL
from cmr_monitor_callbacks.folding import TIMER_ROWS, Durations, add_durations, add_event, check
from cmr_monitor_callbacks.locks import Lock, locked
from cmr_monitor_callbacks.packed import ROW, Packed
from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds
from cmr_monitor_callbacks.recording.fold import FIELDS, STRIDE, Fold
from cmr_monitor_callbacks.recording.late import LateTimes
from cmr_monitor_callbacks.recording.steps import STRIDE as STEP_STRIDE
from cmr_monitor_callbacks.recording.steps import add_steps
from cmr_monitor_callbacks.recording.tally import add_tally

Keep = Mapping[int, Callable[[NDArray[np.float64]], None]]
ON_DEVICE: Final = object()
"""Stands for a value that a device counts; the host counts the sample."""
_GAUGE_ROWS: Final = [ROW[name] for name in ("total_entries", "capacity", "memory_bytes")]


@dataclass(frozen=True)
class InvalidSample:
    """One value that was not taken.

    Attributes:
        component: whose event it was in.
        field: name of the field.
        column: of the layer.
        value: what was given, as text.
        reason: what is wrong with it.
    """

    component: str
    field: str
    column: int
    value: str
    reason: str

    @property
    def nonfinite(self) -> bool:
        """Whether it was a number, but NaN or infinite."""
        return self.reason == "not finite"


class Recorder:
    """A flat list of events for each kind, and what was added the slow way.

    Args:
        by_layer: whether durations go to histograms of each layer, too.

    Attributes:
        lists: by kind, events one after the other: the layer's column, then `fold.FIELDS`. Whole
            numbers are ints, others floats, None is no data. What extends them adds one event.
        tally: what the monitor saw by itself: places and numbers in turn, see `tally`.
        spoken: components of which a probe has said anything; the tally's are left out from then
            on, for the model's author knows best.
        unseen: components of the tally of which not all can be seen: none of it is taken.
        steps: what the monitor timed itself, one after the other, each with `steps.STEP_FIELDS`.
        invalid: values that were not taken.
        late: durations of a device, which become known later; None where the host's clock times.
        came_late: whether the last `drain` took any of them.

    >>> from cmr_monitor_callbacks.packed import ROW
    >>> recorder = Recorder()
    >>> recorder.lists["buffer"].extend((1, 900, 1024, 460800, 5, 0, 0))
    >>> packed, count = recorder.drain(2, {})
    >>> float(packed.values[ROW["total_entries"], 1]), count
    (900.0, 1)
    """

    def __init__(self, *, by_layer: bool = False) -> None:
        self._by_layer = by_layer
        self.lock = Lock()
        """Held while what lies aside is changed; what extends the lists needs none."""
        self.lists: dict[str, list[Any]] = {kind: [] for kind in FIELDS}
        self.tally: list[Any] = []
        self.spoken: set[str] = set()
        self.unseen: set[str] = set()
        self.steps: list[Any] = []
        self.invalid: list[InvalidSample] = []
        self.late: LateTimes | None = None
        self.came_late = False
        self._fold = Fold(FIELDS)
        self._fold_buffer = Fold(["buffer"])
        self._clear_aside()

    def _clear_aside(self) -> None:
        self._aside: Packed | None = None
        self._aside_events = 0
        self._aside_durations: Durations = []

    @locked
    def add_any(self, component: str, column: int, fields: Sequence[Any]) -> None:
        """Check an event value by value and add it; what is wrong is left out and noted."""
        if component == "buffer":
            self._put_aside()  # what holds now is what was said last
        if self.late is not None and any(type(value) is DeviceSeconds for value in fields):
            fields = self._put_late(component, column, fields)
        self._add_checked(component, column, fields)

    def _put_late(self, component: str, column: int, fields: Sequence[Any]) -> Sequence[Any]:
        """The event without its duration, which is not known yet."""
        at = RECORDS[component].index("seconds")
        seconds, times = fields[at], fields[0] if component == "retrieval" else 1
        if type(seconds) is not DeviceSeconds:
            return fields
        if self.late is not None and isinstance(times, (int, float)):
            self.late.add_probed(component, column, seconds, times)
        return (*fields[:at], None, *fields[at + 1 :])

    def _add_checked(self, component: str, column: int, fields: Sequence[Any]) -> None:
        checked: list[float | None] = []
        for name, value in zip(RECORDS[component], fields, strict=True):
            if value is ON_DEVICE:
                checked.append(0.0)
                continue
            highest = 1.0 if name in UNIT_INTERVAL else math.inf
            number, reason = check(value, whole=name not in REAL_FIELDS, highest=highest)
            checked.append(number)
            if reason:
                text = safe_text(value)
                self.invalid.append(InvalidSample(component, name, column, text, reason))
        if fields[0] is not ON_DEVICE:
            checked = list(events.settled(component, tuple(checked)))
        aside = self._aside_of(column + 1)
        add_event(aside, component, column, checked)
        self._aside_events += 1
        if component == "buffer":
            for row, given in zip(_GAUGE_ROWS, fields, strict=False):
                if given is ON_DEVICE:
                    aside.values[row, column] = math.nan  # the device's is the newest
        on_host = tuple(
            None if given is ON_DEVICE else value
            for given, value in zip(fields, checked, strict=True)
        )
        found = events.durations(component, on_host)
        for timer, (seconds, times) in zip(TIMER_ROWS[component], found, strict=True):
            if seconds is not None and times:
                one = np.array([seconds]), np.array([times], dtype=np.float64)
                self._aside_durations.append((timer, *one))
                if aside.by_layer is not None:
                    aside.by_layer.put(timer, np.array([column]), *one)

    @locked
    def gauge(self, field: int, column: int) -> float:
        """A gauge of the buffer as the host knew it last in this window; NaN: it did not say.

        Args:
            field: 0 entries, 1 capacity, 2 bytes.
            column: of the layer.
        """
        self._put_aside()
        return float(self._aside_of(column + 1).values[_GAUGE_ROWS[field], column])

    def _aside_of(self, width: int) -> Packed:
        if self._aside is None:
            self._aside = Packed.empty(width, by_layer=self._by_layer)
        self._aside.widen(width)
        return self._aside

    def _put_aside(self) -> None:
        """Work out what was said of the buffer until now."""
        items = _taken(self.lists["buffer"])
        if items:
            aside = self._aside_of(1 + max(items[:: STRIDE["buffer"]]))
            self._add(self._fold_buffer, aside, {"buffer": items}, self._aside_durations)

    def _add(
        self, fold: Fold, packed: Packed, taken: Mapping[str, Sequence[Any]], durations: Durations
    ) -> None:
        """Add events; where one is not all right, all go aside, one by one."""
        if fold.add(packed, taken, durations):
            self._aside_events += sum(len(items) // STRIDE[kind] for kind, items in taken.items())
            return
        for kind, items in taken.items():
            stride = STRIDE[kind]
            for start in range(0, len(items), stride):
                self._add_checked(kind, items[start], items[start + 1 : start + stride])

    def _add_tally(self, packed: Packed, items: Sequence[Any], durations: Durations) -> None:
        self._aside_events += len(items) // 2
        without = {*self.unseen, *self.spoken, *(["holds"] if "buffer" in self.spoken else [])}
        for component, name, column, number in add_tally(packed, items, durations, without):
            reason = "not finite" if not math.isfinite(number) else "out of range"
            self.invalid.append(InvalidSample(component, name, column, repr(number), reason))

    @property
    def pending(self) -> bool:
        """Whether anything waits to be drained."""
        lists = (*self.lists.values(), self.steps, self.tally)
        return self._aside is not None or any(lists)

    @locked
    def clear(self) -> None:
        """Forget what was recorded."""
        self._clear_aside()
        self.invalid.clear()
        for items in (self.steps, self.tally, *self.lists.values()):
            del items[:]
        if self.late is not None:
            self.late.forget()

    @locked
    def drain(self, width: int, keep: Keep, *, devices: bool = True) -> tuple[Packed, int]:
        """Take out what was recorded.

        Args:
            width: number of columns.
            keep: by timer, who is given its raw durations.
            devices: whether to ask a device for the durations that are over, which the thread that
                uses it may do alone.

        Returns:
            the statistics, and the number of events.
        """
        packed = Packed.empty(width, by_layer=self._by_layer)
        durations: Durations = []
        taken = {kind: _taken(self.lists[kind]) for kind in FIELDS}
        self._add(self._fold, packed, taken, durations)
        self.spoken.update(kind for kind, items in taken.items() if items)
        tally: Sequence[Any] = _taken(self.tally)
        late = self.late
        if late is not None:
            if devices:
                late.harvest()
            tally = late.settled(tally)
        if tally:
            self._add_tally(packed, tally, durations)
        steps = _taken(self.steps)
        if steps:
            self._aside_events += len(steps) // STEP_STRIDE
            add_steps(packed, steps, durations)
        self.came_late = late is not None and late.take(
            packed, durations, {*self.unseen, *self.spoken}
        )
        count = self._aside_events
        if self._aside is not None:
            self._aside.add(packed)
            packed, durations = self._aside, self._aside_durations + durations
            packed.widen(width)
        self._clear_aside()
        if durations:
            for timer, seconds, _ in durations:
                if timer in keep:
                    keep[timer](seconds)
            add_durations(packed, durations)
        return packed, count


def _taken(items: list[Any]) -> tuple[Any, ...]:
    """Take all items out; probes may go on adding from other threads."""
    out = tuple(items)
    del items[: len(out)]
    return out


def safe_text(value: Any) -> str:
    """A value for people, short, whatever its ``__repr__`` does."""
    try:
        return repr(value)[:80]
    except Exception:
        return f"<{type(value).__name__}>"
