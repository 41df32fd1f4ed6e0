"""The ledger: all that was recorded in this process, by stage, from events to readable tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import RECORDS
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.packed import Packed, read
from cmr_monitor_callbacks.recording.cells import CellRead, DeviceCells
from cmr_monitor_callbacks.recording.recorder import Batch, InvalidSample, Recorder
from cmr_monitor_callbacks.recording.stage import ClosedWindow, StageStatistics

OnInvalid = Callable[[InvalidSample], None]


@dataclass(frozen=True)
class Reading:
    """What a finished window says.

    Attributes:
        run: shape ``(metrics, width)``: every metric since the start of the stage.
        window: shape ``(metrics, width)``: every metric of the window.
        statistics: the window's packed statistics.
    """

    run: NDArray[np.float64]
    window: NDArray[np.float64]
    statistics: Packed


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
        self._keep_times = keep_times
        self._on_invalid = on_invalid
        self.clear()

    def clear(self) -> None:
        """Forget every number; layers, sinks and device rows stay."""
        self.recorder.clear()
        self.cells.read()
        self.stage = "train"
        self.events = 0
        self.invalid_samples = 0
        self.dirty = False
        """Whether the window in hand has anything in it."""
        self._held = Packed.empty(self.layout.width)
        self._train = StageStatistics(self.layout, self._keep_times)
        self._other = self._train

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
            self._other = StageStatistics(self.layout, self._keep_times)

    def fold(self) -> None:
        """Move what was recorded into the current stage's metrics; starts reading the devices."""
        batches = {kind: b for kind in RECORDS if (b := self.recorder.drain(kind)) is not None}
        reads = self.cells.read()
        if not batches and not reads:
            return
        events = sum(len(batch.slots) for batch in batches.values())
        self.events += events
        self.dirty = self.dirty or events > 0
        self._add_errors(batches, reads)
        self.current.fold(batches, reads)

    def close(self, step: int, time: float) -> ClosedWindow:
        """End the current stage's window."""
        self.fold()
        self.dirty = False
        return self.current.close(step, time)

    def finish(self, closed: ClosedWindow, stage: StageStatistics) -> Reading:
        """Add a closed window to its stage and read both."""
        window = stage.finish(closed)
        self._held.take_gauges(window)
        stage.run.take_gauges(self._held)
        window.take_gauges(self._held)
        window.widen(stage.run.width)
        seen = stage.run.samples
        return Reading(read(stage.run, seen), read(window, seen), window)

    def state(self) -> dict[str, Any]:
        """Plain data: layers, the training run, and the window begun."""
        self.fold()
        statistics = self._train.state()
        return {
            "layers": list(self.layout.layers),
            "events": self.events,
            "invalid_samples": self.invalid_samples,
            **statistics,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`; layers may have got other columns since."""
        self.clear()
        columns = [0, *(self.layout.column(layer) for layer in state["layers"])]
        self._train.load(state, columns, self.layout.width)
        self._held.take_gauges(self._train.run)
        self.events = state["events"]
        self.invalid_samples = state["invalid_samples"]
        self.dirty = True

    def _add_errors(self, batches: dict[str, Batch], reads: list[CellRead]) -> None:
        """Count rejected samples by layer; where nothing went wrong, 0 is a number too."""
        nonfinite = np.zeros(self.layout.width)
        for batch in batches.values():
            for sample in batch.invalid:
                self.invalid_samples += 1
                nonfinite[sample.slot] += sample.nonfinite
                self._on_invalid(sample)
        events = np.stack((np.zeros_like(nonfinite), np.full_like(nonfinite, np.nan), nonfinite), 1)
        slots = np.arange(self.layout.width)
        reported = batches.get("error")
        if reported is not None:
            events = np.concatenate((events, reported.events))
            slots = np.concatenate((slots, reported.slots))
        batches["error"] = Batch(events, slots)
