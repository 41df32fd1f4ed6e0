"""Where a step's time goes: a stopwatch that the callback's hooks advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds, Moment

Time = float | None
StepRecord = tuple[float, Time, Time, Time, Time, Time, int, int | None, int | None]
"""Fields as in ``catalogue.RECORDS["timing"]``, then samples and tokens."""


class StepTimer:
    """Sums the phases of a step over its micro-batches; all times in seconds.

    ``mark`` is the last moment whose phase was accounted for. Forward is what lies between a
    batch's start (or the last optimizer step, with manual optimization) and a backward.
    """

    __slots__ = (
        "_backward",
        "_forward",
        "_inside",
        "_last_end",
        "_mark",
        "_monitor",
        "_open",
        "_optimizer",
        "_passes",
        "_samples",
        "_span",
        "_start",
        "_tokens",
        "_wait",
    )

    def __init__(self) -> None:
        self._last_end: float | None = None
        self._monitor: float | None = None
        self._mark = 0.0
        self._inside = False
        self._clear()

    def _clear(self) -> None:
        self._start = 0.0
        self._forward = self._backward = self._optimizer = self._span = 0.0
        self._wait: float | None = None
        self._samples: int | None = None
        self._tokens: int | None = None
        self._passes = 0
        self._open = ""

    def batch_start(self, now: float) -> None:
        """A batch begins; what lies since the last one was waiting."""
        if self._last_end is not None:
            self._wait = (self._wait or 0.0) + now - self._last_end
        self._start = self._mark = now
        self._inside = True
        self._open = "forward"

    def before_backward(self, now: float) -> None:
        """A forward has ended."""
        self._forward += now - self._mark
        self._mark = now
        self._open = "backward"

    def after_backward(self, now: float) -> None:
        """A backward has ended."""
        self._backward += now - self._mark
        self._mark = now
        self._open = ""

    def before_optimizer(self, now: float) -> None:
        """An optimizer step begins."""
        self._mark = now
        self._open = "optimizer"

    def after_optimizer(self, now: float) -> None:
        """An optimizer step has ended."""
        if self._open == "optimizer":
            self._optimizer += now - self._mark
        self._mark = now
        self._open = ""

    def batch_end(self, now: float) -> None:
        """A batch has ended; a phase that nobody ended ends with it."""
        if self._open == "forward":
            self._forward += now - self._mark
        elif self._open == "backward":
            self._backward += now - self._mark
        elif self._open == "optimizer":
            self._optimizer += now - self._mark
        self._open = ""
        self._inside = False
        self._mark = now
        self._passes += 1
        self._span += now - self._start

    def holds(self, samples: int | None, tokens: int | None) -> None:
        """The batch held so many samples and tokens; None: not known."""
        if samples is not None:
            self._samples = samples if self._samples is None else self._samples + samples
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens

    def take(self) -> StepRecord:
        """What is known of the step; a new one begins."""
        record = (
            self._span,
            self._wait,
            self._forward,
            self._backward,
            self._optimizer,
            self._monitor,
            self._passes,
            self._samples,
            self._tokens,
        )
        self._clear()
        return record

    def left_hook(self, entered: float, now: float) -> None:
        """The monitor's own hook ran from ``entered`` to ``now``; that is no waiting for data."""
        self._monitor = now - entered
        self._last_end = self._mark = now

    def stand(self) -> tuple[str, float]:
        """The phase that is under way and when it began; may be asked from another thread."""
        return self._open or ("step" if self._inside else "data"), self._mark

    def pause(self) -> None:
        """Validation or the like comes between: the next wait does not count."""
        self._last_end = None

    def resume(self, now: float) -> None:
        """Validation is over; waiting counts from now on."""
        self._last_end = self._mark = now


class DeviceStepTimer(StepTimer):
    """A stopwatch whose phases (forward, backward, optimizer) are timed by a device.

    The step, the wait before it and the monitor's own time are the host's, as is what `stand` says.

    Args:
        clock: gives a moment on the device; None: it has none to give.
        late: told each phase of a step, with what its time is the sum of.
    """

    __slots__ = ("_clock", "_from", "_late", "_lost", "_spans")

    def __init__(self, clock: Callable[[], Moment | None], late: Callable[..., None]) -> None:
        self._clock = clock
        self._late = late
        self._from: Moment | None = None
        super().__init__()

    def __reduce__(self) -> tuple[Any, ...]:
        return StepTimer, ()  # the clock belongs to its process

    def _clear(self) -> None:
        super()._clear()
        self._spans: dict[str, list[DeviceSeconds]] = {}
        self._lost: set[str] = set()

    def _passes_by(self, phase: str) -> None:
        """The phase ends here, and what follows begins."""
        start, self._from = self._from, self._clock()
        if start is None or self._from is None:
            self._lost.add(phase)
        else:
            self._spans.setdefault(phase, []).append(self._from - start)

    def batch_start(self, now: float) -> None:
        """See `StepTimer.batch_start`."""
        super().batch_start(now)
        self._from = self._clock()

    def before_backward(self, now: float) -> None:
        """See `StepTimer.before_backward`."""
        super().before_backward(now)
        self._passes_by("forward")

    def after_backward(self, now: float) -> None:
        """See `StepTimer.after_backward`."""
        super().after_backward(now)
        self._passes_by("backward")

    def before_optimizer(self, now: float) -> None:
        """See `StepTimer.before_optimizer`."""
        super().before_optimizer(now)
        self._from = self._clock()

    def after_optimizer(self, now: float) -> None:
        """See `StepTimer.after_optimizer`."""
        if self._open == "optimizer":
            self._passes_by("optimizer")
        else:
            self._from = self._clock()
        super().after_optimizer(now)

    def batch_end(self, now: float) -> None:
        """See `StepTimer.batch_end`."""
        if self._open:
            self._passes_by(self._open)
        self._from = None
        super().batch_end(now)

    def take(self) -> StepRecord:
        """What is known of the step; its phases' times come later, and are None here."""
        spans, lost = self._spans, self._lost
        span, wait, forward, backward, optimizer, *rest = super().take()
        passes = rest[1]
        times: dict[str, Time] = {
            "forward": forward,
            "backward": backward,
            "optimizer": optimizer,
        }
        for phase in {*spans, *lost}:
            times[phase] = None
            if phase not in lost:
                weight = passes if phase == "forward" else 1
                self._late(f"{phase}_time", 0, spans[phase], weight)
        return (span, wait, *times.values(), *rest)  # type: ignore[return-value]
