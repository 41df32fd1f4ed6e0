"""The ledger: all that was recorded in this process, by stage, from events to readable tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.folding import TIMER_ROWS
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.packed import ROW, Packed, Reader
from cmr_monitor_callbacks.recording.cells import DeviceCells
from cmr_monitor_callbacks.recording.recorder import InvalidSample, Recorder
from cmr_monitor_callbacks.recording.stage import ClosedWindow, StageStatistics

_WATCHED = [ROW["error_count"], ROW["nonfinite_count"]]
OnInvalid = Callable[[InvalidSample], None]


@dataclass(frozen=True)
class Reading:
    """What a finished window says.

    Attributes:
        window: shape ``(metrics, width)``: every metric of the window.
        counters: shape ``(counters, width)``: counters since the start of the stage.
        statistics: the window's packed statistics.
        run: packed statistics since the start of the stage; a copy.
    """

    window: NDArray[np.float64]
    counters: NDArray[np.float64]
    statistics: Packed
    run: Packed


class Ledger:
    """Recorder, device cells and the statistics of each stage.

    Args:
        keep_times: raw durations to keep of each kind.
        on_invalid: told of each value that was not taken.
    """

    def __init__(self, keep_times: int, on_invalid: OnInvalid) -> None:
        self.layout = Layout()
        self.recorder = Recorder()
        self.cells = DeviceCells()
        self.stage = "train"
        self._on_invalid = on_invalid
        self._reader = Reader()
        self.recent_times: dict[str, NDArray[np.float64]] = {}
        """The last raw durations, in seconds."""
        self._keep_times = keep_times
        self._keep = {
            TIMER_ROWS[kind][0]: partial(self._keep_last, f"{kind}_times")
            for kind in ("capture", "reconstruction")
        }
        self.clear()

    def clear(self) -> None:
        """Forget every number; layers, sinks and device rows stay."""
        self.recorder.clear()
        self.cells.read()
        self.stage = "train"
        self.events = 0
        self.invalid_samples = 0
        self.dirty = False
        """Whether training's window in hand has anything in it."""
        self.recent_times = {}
        self._train = StageStatistics(self.layout)
        self._other = self._train

    def forget_layers(self) -> None:
        """Forget every number and every layer; no probe may be attached."""
        self.layout = Layout()
        self.cells = DeviceCells()
        self.clear()

    @property
    def current(self) -> StageStatistics:
        """Statistics of the stage that is recorded now."""
        return self._train if self.stage == "train" else self._other

    @property
    def train(self) -> StageStatistics:
        """Statistics of training."""
        return self._train

    def enter(self, stage: str) -> None:
        """What is recorded from now on belongs to another stage."""
        self.fold()
        self.stage = stage
        if stage != "train":
            self._other = StageStatistics(self.layout)

    def fold(self) -> None:
        """Move what was recorded into the current stage; starts reading the devices."""
        keep = self._keep if self.stage == "train" else {}
        packed, events = self.recorder.drain(self.layout.width, keep)
        reads = self.cells.read()
        if not events and not reads:
            return
        self.events += events
        if self.stage == "train":
            self.dirty = self.dirty or events > 0
        # where a source is live and nothing went wrong, 0 is a number
        packed.samples[_WATCHED] += 1
        for sample in self.recorder.invalid:
            self.invalid_samples += 1
            packed.values[ROW["nonfinite_count"], sample.column] += sample.nonfinite
            self._on_invalid(sample)
        self.recorder.invalid.clear()
        self.current.fold(packed, reads)

    def close(self, step: int, time: float) -> ClosedWindow:
        """End the current stage's window."""
        self.fold()
        if self.stage == "train":
            self.dirty = False
        return self.current.close(step, time)

    def finish(self, closed: ClosedWindow, stage: StageStatistics) -> Reading:
        """Add a closed window to its stage and read both."""
        window = stage.finish(closed)
        for read in closed.reads:
            for component, column, name, count in read.rejected():
                self.invalid_samples += count
                text = f"{count} on the device"
                self._on_invalid(InvalidSample(component, name, column, text, "out of range"))
        window.widen(stage.run.width)
        if stage is not self._train:
            stage.run.take_gauges(self._train.run)
        stage.run.take_gauges(window)
        window.take_gauges(stage.run)
        run = stage.run.copy()
        return Reading(self._reader.read(window, run), self._reader.counters(run), window, run)

    def peek(self) -> Reading:
        """What the training window begun would say, without ending it."""
        self.fold()
        window = self._train.in_hand()
        run = self._train.run.copy()
        run.add(window)
        return Reading(self._reader.read(window, run), self._reader.counters(run), window, run)

    def state(self) -> dict[str, Any]:
        """Plain data: layers, the training run, and the window begun."""
        self.fold()
        statistics = self._train.state()
        return {
            "layers": list(self.layout.layers),
            "events": self.events,
            "invalid_samples": self.invalid_samples,
            "window_begun": self.dirty,
            **statistics,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; layers may have got other columns since."""
        self.clear()
        columns = [0, *(self.layout.column(layer) for layer in state["layers"])]
        self._train.load(state, columns, self.layout.width)
        self.events = state["events"]
        self.invalid_samples = state["invalid_samples"]
        self.dirty = state["window_begun"]

    def _keep_last(self, name: str, seconds: NDArray[np.float64]) -> None:
        kept = self.recent_times.get(name)
        if kept is not None and len(seconds) < self._keep_times:
            seconds = np.concatenate((kept, seconds))
        # a new mapping: snapshots hold the old one
        self.recent_times = {**self.recent_times, name: seconds[-self._keep_times :]}
