"""The recorder: running sums for each layer, filled by probes, emptied at the end of a window.

A probe call adds a few Python numbers to the slots of a *tally* and appends durations to a flat
list: no object is made for an event, nothing grows with the number of events but the durations, and
the end of a window costs the same however many events it held. What is not a plain Python number in
range takes the slow way, `Recorder.add_any`, which checks each value.

The adds of one call are straight-line code, so that under the interpreter lock (3.11 and later) no
other thread comes between them; one probe is to be called from one thread at a time.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks import events
from cmr_monitor_callbacks.catalogue import REAL_FIELDS, RECORDS, UNIT_INTERVAL
from cmr_monitor_callbacks.folding import (
    FIRST_ROW,
    TIMER_ROWS,
    add_durations,
    add_event,
    check,
)
from cmr_monitor_callbacks.packed import ROW, Packed

Keep = Mapping[int, Callable[[NDArray[np.float64]], None]]
NO_DATA: Final = math.nan
ON_DEVICE: Final = object()
"""Stands for a value that a device counts; the host counts the sample."""
_GAUGE_ROWS: Final = [ROW[name] for name in ("total_entries", "capacity", "memory_bytes")]


class CaptureTally:
    """Running sums of one layer's captures; ``n`` calls in the fast way."""

    __slots__ = (
        "attempted",
        "captured",
        "considered",
        "considered_n",
        "n",
        "seconds",
        "stored",
        "timed",
        "times",
    )

    def __init__(self, times: array[float]) -> None:
        self.times = times
        self.clear()

    def clear(self) -> None:
        """Back to nothing."""
        self.n = self.attempted = self.captured = self.stored = 0
        self.considered = self.considered_n = self.timed = 0
        self.seconds = 0.0

    def statistics(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Values and number of samples, in the order of the component's statistics."""
        n = self.n
        return (
            (self.attempted, self.captured, self.stored, self.considered, n, self.seconds),
            (n, n, n, self.considered_n, n, self.timed),
        )


class ReconstructionTally:
    """Running sums of one layer's reconstructions."""

    __slots__ = ("n", "quality", "quality_n", "seconds", "timed", "times", "used", "with_memory")

    def __init__(self, times: array[float]) -> None:
        self.times = times
        self.clear()

    def clear(self) -> None:
        """Back to nothing."""
        self.n = self.with_memory = self.used = self.quality_n = self.timed = 0
        self.quality = self.seconds = 0.0

    def statistics(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Values and number of samples, in the order of the component's statistics."""
        n = self.n
        return (
            (n, self.with_memory, self.used, self.quality, self.seconds),
            (n, n, n, self.quality_n, self.timed),
        )


class BufferTally:
    """One layer's buffer: what left and entered it, and what holds now."""

    __slots__ = ("capacity", "cleared", "entries", "evicted", "loaded", "n", "nbytes", "seen")

    def __init__(self, times: array[float]) -> None:
        self.entries: float = NO_DATA
        self.capacity: float = NO_DATA
        self.nbytes: float = NO_DATA
        self.clear()

    def clear(self) -> None:
        """Back to nothing; what holds now goes on holding."""
        self.n = self.evicted = self.cleared = self.loaded = self.seen = 0

    def statistics(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Values and number of samples, in the order of the component's statistics."""
        n = self.n
        gauges = (self.entries, self.capacity, self.nbytes)
        return (
            (self.evicted, self.cleared, self.loaded, self.seen, *gauges),
            (n, n, n, n, n, n, n),
        )


class RetrievalTally:
    """Running sums of one layer's retrievals; ``times`` holds pairs of seconds and operations."""

    __slots__ = (
        "hits",
        "hits_n",
        "n",
        "quality",
        "quality_n",
        "requested",
        "returned",
        "seconds",
        "timed",
        "timed_n",
        "times",
        "with_cache",
    )

    def __init__(self, times: array[float]) -> None:
        self.times = times
        self.clear()

    def clear(self) -> None:
        """Back to nothing."""
        self.n = self.requested = self.returned = self.hits = self.hits_n = self.with_cache = 0
        self.timed = self.timed_n = self.quality_n = 0
        self.quality = self.seconds = 0.0

    def statistics(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Values and number of samples, in the order of the component's statistics."""
        n, hits_n, timed_n = self.n, self.hits_n, self.timed_n
        return (
            (
                self.requested,
                self.returned,
                self.hits,
                self.with_cache,
                self.timed,
                self.seconds,
                self.quality,
            ),
            (n, n, hits_n, hits_n, timed_n, timed_n, self.quality_n),
        )


class StepTally:
    """Times and amounts of the steps: two components in one, for one call fills both."""

    __slots__ = (
        "_backward",
        "_backward_n",
        "_forward",
        "_monitor",
        "_monitor_n",
        "_optimizer",
        "_optimizer_n",
        "_passes",
        "_sample_seconds",
        "_samples",
        "_samples_n",
        "_step",
        "_token_seconds",
        "_tokens",
        "_tokens_n",
        "_wait",
        "_wait_n",
        "n",
        "times",
    )

    def __init__(self, times: Sequence[array[float]]) -> None:
        self.times = times
        self.clear()

    def clear(self) -> None:
        """Back to nothing."""
        self.n = self._passes = self._samples = self._tokens = 0
        self._wait_n = self._backward_n = self._optimizer_n = self._monitor_n = 0
        self._samples_n = self._tokens_n = 0
        self._step = self._wait = self._forward = self._backward = self._optimizer = 0.0
        self._monitor = self._sample_seconds = self._token_seconds = 0.0

    def statistics(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Values and number of samples, in the order of the two components' statistics."""
        n, samples_n, tokens_n = self.n, self._samples_n, self._tokens_n
        return (
            (
                self._passes,
                self._passes,
                self._step,
                self._wait,
                self._forward,
                self._backward,
                self._optimizer,
                self._monitor,
                self._samples,
                self._tokens,
                self._sample_seconds,
                self._token_seconds,
            ),
            (
                n,
                n,
                n,
                self._wait_n,
                n,
                self._backward_n,
                self._optimizer_n,
                self._monitor_n,
                samples_n,
                tokens_n,
                samples_n,
                tokens_n,
            ),
        )

    def add(
        self,
        step: float,
        wait: float | None,
        forward: float,
        backward: float | None,
        optimizer: float | None,
        monitor: float | None,
        passes: int,
        samples: int | None,
        tokens: int | None,
    ) -> None:
        """Add a step that the monitor timed itself, in seconds; ``passes`` is at least 1."""
        steps, waits, forwards, backwards, optimizers = self.times
        self.n += 1
        self._passes += passes
        self._step += step
        self._forward += forward
        steps.append(step)
        forwards.append(forward / passes)
        forwards.append(passes)
        wall = step
        if wait is not None:
            wall += wait
            self._wait += wait
            self._wait_n += 1
            waits.append(wait)
        if backward is not None:
            self._backward += backward
            self._backward_n += 1
            backwards.append(backward)
        if optimizer is not None:
            self._optimizer += optimizer
            self._optimizer_n += 1
            optimizers.append(optimizer)
        if monitor is not None:
            self._monitor += monitor
            self._monitor_n += 1
        if samples is not None:
            self._samples += samples
            self._samples_n += 1
            self._sample_seconds += wall
        if tokens is not None:
            self._tokens += tokens
            self._tokens_n += 1
            self._token_seconds += wall


TALLIES: Final[dict[str, Any]] = {
    "capture": CaptureTally,
    "reconstruction": ReconstructionTally,
    "buffer": BufferTally,
    "retrieval": RetrievalTally,
}
_WEIGHTED: Final = frozenset({TIMER_ROWS["retrieval"][0], TIMER_ROWS["timing"][2]})
"""Timers whose lists hold pairs: seconds of one operation, and how many there were."""


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
    """Tallies by component and layer, and the durations of the window.

    >>> from cmr_monitor_callbacks.packed import ROW
    >>> recorder = Recorder()
    >>> tally = recorder.tally("buffer", 1)
    >>> tally.entries, tally.n = 900, 1
    >>> packed, count = recorder.drain(2, {})
    >>> float(packed.values[ROW["total_entries"], 1]), count
    (900.0, 1)
    """

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int], Any] = {}
        self._times: dict[int, array[float]] = {
            row: array("d") for rows in TIMER_ROWS.values() for row in rows
        }
        self._aside: Packed | None = None
        self._aside_events = 0
        self.invalid: list[InvalidSample] = []
        self._index: Any = None
        self.steps = StepTally([self._times[row] for row in TIMER_ROWS["timing"]])
        self._tallies["timing", 0] = self.steps

    def tally(self, component: str, column: int) -> Any:
        """The tally of a component at a layer, made if it is new."""
        key = component, column
        if key not in self._tallies:
            rows = TIMER_ROWS[component]
            times = self._times[rows[0]] if rows else array("d")
            self._tallies[key] = TALLIES[component](times)
            self._index = None
        return self._tallies[key]

    def add_any(self, component: str, column: int, fields: Sequence[Any]) -> None:
        """Check an event value by value and add it; what is wrong is left out and noted."""
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
        if self._aside is None or self._aside.width <= column:
            wider = Packed.empty(column + 1)
            if self._aside is not None:
                wider.add(self._aside)
            self._aside = wider
        add_event(self._aside, component, column, checked)
        self._aside_events += 1
        if component == "buffer":
            self._look(column, fields, checked)
        on_host = tuple(
            None if given is ON_DEVICE else value
            for given, value in zip(fields, checked, strict=True)
        )
        found = events.durations(component, on_host)
        for timer, (seconds, times) in zip(TIMER_ROWS[component], found, strict=True):
            if seconds is not None and times:
                self._times[timer].extend((seconds, times) if timer in _WEIGHTED else (seconds,))

    def _look(self, column: int, fields: Sequence[Any], checked: Sequence[float | None]) -> None:
        """What holds now is the tally's alone: a value not given leaves the old one."""
        assert self._aside is not None
        self._aside.values[_GAUGE_ROWS, column] = NO_DATA
        tally = self.tally("buffer", column)
        for name, given, value in zip(
            ("entries", "capacity", "nbytes"), fields, checked, strict=False
        ):
            if given is ON_DEVICE:
                setattr(tally, name, NO_DATA)  # the device's is the newest
            elif value is not None:
                setattr(tally, name, value)

    @property
    def pending(self) -> bool:
        """Whether anything waits to be drained."""
        return self._aside is not None or any(t.n for t in self._tallies.values())

    def clear(self) -> None:
        """Forget what was recorded."""
        self._aside = None
        self._aside_events = 0
        self.invalid.clear()
        for tally in self._tallies.values():
            tally.clear()
            if isinstance(tally, BufferTally):
                tally.entries = tally.capacity = tally.nbytes = NO_DATA
        for times in self._times.values():
            del times[:]

    def drain(self, width: int, keep: Keep) -> tuple[Packed, int]:
        """Take out what was recorded.

        Args:
            width: number of columns.
            keep: by timer, who is given its raw durations.

        Returns:
            the statistics, and the number of events.
        """
        packed = Packed.empty(width)
        count = self._aside_events
        values: list[float] = []
        samples: list[int] = []
        for tally in self._tallies.values():
            count += tally.n
            some_values, some_samples = tally.statistics()
            values += some_values
            samples += some_samples
            tally.clear()
        if values:
            rows, columns = self._places()
            packed.values[rows, columns] = values
            packed.samples[rows, columns] = samples
        if self._aside is not None:
            packed.add(self._aside)
            self._aside, self._aside_events = None, 0
        self._drain_times(packed, keep)
        return packed, count

    def _places(self) -> Any:
        """Row and column of each number that the tallies give, in their order."""
        if self._index is None:
            rows: list[int] = []
            columns: list[int] = []
            for (component, column), tally in self._tallies.items():
                count = len(tally.statistics()[0])
                rows += range(FIRST_ROW[component], FIRST_ROW[component] + count)
                columns += [column] * count
            self._index = np.array(rows), np.array(columns)
        return self._index

    def _drain_times(self, packed: Packed, keep: Keep) -> None:
        timers: list[int] = []
        seconds: list[NDArray[np.float64]] = []
        weights: list[NDArray[np.float64] | None] = []
        for timer, times in self._times.items():
            if not times:
                continue
            taken = np.array(times)
            del times[: len(taken)]
            timers.append(timer)
            if timer in _WEIGHTED:
                seconds.append(taken[::2])
                weights.append(taken[1::2])
            else:
                seconds.append(taken)
                weights.append(None)
            if timer in keep:
                keep[timer](taken)
        if timers:
            add_durations(packed, timers, seconds, weights)


def safe_text(value: Any) -> str:
    """A value for people, short, whatever its ``__repr__`` does."""
    try:
        return repr(value)[:80]
    except Exception:
        return f"<{type(value).__name__}>"
