"""What `CMRProbe.timer` gives: by the host's clock, a device's, or none."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from cmr_monitor_callbacks.recording.device_clock import DeviceClock, DeviceSeconds, Moment


class ProbeTimer:
    """Measures host time between enter and exit, in seconds; reusable, not re-entrant.

    For work on a GPU that is the time to launch it, not to do it; see `DeviceTimer`.
    """

    __slots__ = ("_start", "seconds")

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._start = 0.0

    def __enter__(self) -> ProbeTimer:
        """Start."""
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop; ``seconds`` holds the duration."""
        self.seconds = time.perf_counter() - self._start

    def another(self) -> ProbeTimer:
        """A timer alike."""
        return ProbeTimer()


class DeviceTimer:
    """Measures the time of a device between enter and exit, without waiting; as `ProbeTimer`.

    Args:
        clock: of the device.
    """

    __slots__ = ("_clock", "_start", "seconds")

    def __init__(self, clock: DeviceClock) -> None:
        self.seconds: DeviceSeconds | None = None
        self._clock = clock
        self._start: Moment | None = None

    def __enter__(self) -> DeviceTimer:
        """Start."""
        self._start = self._clock.now()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop; ``seconds`` stands for the duration, which becomes known later."""
        start, self._start = self._start, None
        end = None if start is None else self._clock.now()
        self.seconds = None if end is None else end - start

    def another(self) -> DeviceTimer:
        """A timer alike."""
        return DeviceTimer(self._clock)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProbeTimer, ()  # a copy is attached to nothing


class IdleTimer:
    """Measures nothing: no monitor listens, or the code is being compiled."""

    __slots__ = ()
    seconds: float | None = None

    def __enter__(self) -> IdleTimer:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def another(self) -> IdleTimer:
        """The same one: there is nothing in it."""
        return self


IDLE: Final = IdleTimer()
Timer = ProbeTimer | DeviceTimer | IdleTimer
Sections = Callable[[str], AbstractContextManager[Any]]
"""Opens a section of a profile: its component; the layer is the probe's."""


class SectionTimer:
    """A `ProbeTimer` whose time is a section of the profile that is on."""

    __slots__ = ("_component", "_open", "_section", "_timer", "seconds")

    def __init__(self, sections: Sections, component: str, timer: Timer) -> None:
        self.seconds: float | None = None
        self._open, self._component, self._timer = sections, component, timer
        self._section: AbstractContextManager[Any] | None = None

    def __enter__(self) -> SectionTimer:
        self._section = self._open(self._component)
        self._section.__enter__()
        self._timer.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._timer.__exit__(*exc)
        self.seconds = self._timer.seconds
        section, self._section = self._section, None
        if section is not None:
            section.__exit__(*exc)
