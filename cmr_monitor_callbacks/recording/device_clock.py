"""Time on a GPU: events from a ring, asked whether they are over, never waited for.

A kernel's launch returns before the kernel has run, so that the host's clock around it reads the
time of launching. Here a reading is an event that the device passes when it gets there. Two of them
apart are `DeviceSeconds`: a number that becomes known later, without anybody waiting for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import nn

EVENTS: Final = 2048
"""Events of a clock; a call needs two. A CUDA stream takes about a thousand launches ahead of the
device, so that more are rarely under way."""
_AT_ONCE: Final = 32
"""Most that are asked within a call, where no event is free."""


class DeviceEvent(Protocol):
    """What is needed of ``torch.cuda.Event(enable_timing=True)``."""

    def query(self) -> bool:
        """Whether the device has passed it; never waits."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to a later one.

        Raises:
            RuntimeError: one of them is not over, or they are of different devices.
        """
        ...


class Moment:
    """A reading of a `DeviceClock`; its event goes back to the ring when nobody holds it."""

    __slots__ = ("_clock", "event")

    def __init__(self, clock: DeviceClock, event: DeviceEvent) -> None:
        self._clock = clock
        self.event = event

    def __sub__(self, start: Any) -> DeviceSeconds:
        """From ``start`` until this moment."""
        if type(start) is not Moment or start._clock is not self._clock:
            return DeviceSeconds(None, None)
        return self._clock.under_way(DeviceSeconds(start, self))

    def __rsub__(self, end: Any) -> DeviceSeconds:
        """From this moment until one that the clock could not give."""
        return DeviceSeconds(None, None)

    def __del__(self) -> None:
        self._clock.give_back(self.event)

    def __reduce__(self) -> tuple[Any, ...]:
        return float, ("nan",)  # a copy measures nothing


class DeviceSeconds(float):
    """A duration on the device: not known when it is made, so NaN to whoever reckons with it.

    Attributes:
        seconds: None while it is not known, and where it never will be.

    >>> from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds
    >>> lost = DeviceSeconds(None, None)
    >>> lost.pending, lost.seconds, lost + 1.0
    (False, None, nan)
    """

    __slots__ = ("_end", "_start", "seconds")
    _start: Moment | None
    _end: Moment | None
    seconds: float | None

    def __new__(cls, start: Moment | None, end: Moment | None) -> DeviceSeconds:
        """Between two moments; without them it is lost."""
        self = super().__new__(cls, math.nan)
        self._start, self._end = start, end
        self.seconds = None
        return self

    @property
    def pending(self) -> bool:
        """Whether it may become known."""
        return self._end is not None

    def settle(self) -> bool:
        """Take the time if the device is past both events; never waits.

        Returns:
            whether nothing is left to wait for.

        Raises:
            RuntimeError: the events cannot be compared; the duration is lost.
        """
        start, end = self._start, self._end
        if start is None or end is None:
            return True
        # where they are of two streams the end says nothing of the start
        if not (end.event.query() and start.event.query()):
            return False
        self._start = self._end = None
        seconds = start.event.elapsed_time(end.event) / 1000
        self.seconds = seconds if seconds >= 0 else None
        return True

    def drop(self) -> None:
        """Give it up; its events are free again."""
        self._start = self._end = None

    def __reduce__(self) -> tuple[Any, ...]:
        return DeviceSeconds, (None, None)  # a copy is lost


class DeviceClock:
    """Reads the time of one device, from a fixed number of events that are made beforehand.

    Where no event is free the sample is dropped and counted, and so is one whose events cannot be
    compared. Nothing is read while a CUDA graph is being captured.

    Args:
        make: makes an event.
        record: has the device pass an event, after all that it was given before.
        capturing: whether a graph is being captured; then events must be let alone.
        size: how many events.

    Attributes:
        dropped: samples that were lost.

    >>> from cmr_monitor_callbacks.recording.device_clock import DeviceClock
    >>> class Event:  # of a device that is done at once, and takes 2 ms for anything
    ...     def query(self):
    ...         return True
    ...
    ...     def elapsed_time(self, end):
    ...         return 2.0
    >>> clock = DeviceClock(Event, record=lambda event: None, capturing=lambda: False, size=2)
    >>> start = clock.now()
    >>> took = clock.now() - start
    >>> clock.harvest()
    >>> took.seconds
    0.002
    """

    def __init__(
        self,
        make: Callable[[], DeviceEvent],
        record: Callable[[Any], Any],
        capturing: Callable[[], bool],
        size: int = EVENTS,
    ) -> None:
        self._record = record
        self._capturing = capturing
        # of a deque items are taken and put by one step under the interpreter lock: any thread may
        self._free: deque[DeviceEvent] = deque(make() for _ in range(size))
        self._under_way: deque[DeviceSeconds] = deque()
        self._open = True
        self.dropped = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _closed, (self.dropped,)  # events belong to their process

    def now(self) -> Moment | None:
        """This moment on the device; None: no sample can be taken. Never waits, never raises."""
        try:
            if not self._open or self._capturing():
                return None
            event = self._take()
            if event is None:
                self.dropped += 1
                return None
            moment = Moment(self, event)
            self._record(event)
        except RuntimeError:  # the device is broken: whoever uses it is told by its own calls
            self.dropped += 1
            return None
        return moment

    def _take(self) -> DeviceEvent | None:
        for again in (True, False):
            try:
                return self._free.popleft()
            except IndexError:
                if again:
                    self._settle(_AT_ONCE)
        return None

    def give_back(self, event: DeviceEvent) -> None:
        """An event is free again."""
        self._free.append(event)

    def under_way(self, seconds: DeviceSeconds) -> DeviceSeconds:
        """Ask after a duration from now on."""
        self._under_way.append(seconds)
        return seconds

    def harvest(self) -> None:
        """Take the times of all that is over, the oldest first; never waits."""
        if self._open and not self._capturing():
            self._settle(len(self._under_way))

    def _settle(self, most: int) -> None:
        for _ in range(most):
            try:
                seconds = self._under_way.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                over = seconds.settle()
            except RuntimeError:
                seconds.drop()
                self.dropped += 1
                continue
            if not over:
                self._under_way.appendleft(seconds)
                return

    def close(self) -> None:
        """Read nothing more; what is not over by now is dropped and counted."""
        self.harvest()
        self._open = False
        for seconds in list(self._under_way):
            seconds.drop()
            self.dropped += 1
        self._under_way.clear()


def _closed(dropped: int) -> DeviceClock:
    """What a copy of a clock is."""
    clock = DeviceClock(torch.cuda.Event, id, bool, size=0)
    clock.close()
    clock.dropped = dropped
    return clock


def cuda_clock(device: torch.device) -> DeviceClock:
    """The clock of a CUDA device: of its current stream, whatever the current device is."""
    current = torch.cuda.current_stream

    def record(event: Any) -> None:
        event.record(current(device))

    def make() -> DeviceEvent:
        event: DeviceEvent = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return event

    return DeviceClock(make, record, torch.cuda.is_current_stream_capturing)


def cuda_device_of(model: nn.Module) -> torch.device | None:
    """The one CUDA device that holds a model; None: it is elsewhere, or on several.

    >>> cuda_device_of(nn.Linear(1, 1)) is None
    True
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    found = [device for device in devices if device.type == "cuda"]
    return found[0] if len(found) == 1 else None
