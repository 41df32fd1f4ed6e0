"""The ledger: all that was recorded in this process, by stage, from events to readable tables."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS
from cmr_monitor_callbacks.distributed import moved
from cmr_monitor_callbacks.folding import TIMER_ROWS
from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.locks import Lock, locked
from cmr_monitor_callbacks.nonfinite import ROW_OF
from cmr_monitor_callbacks.packed import ROW, Packed, Reader
from cmr_monitor_callbacks.ranks import FORWARD_COUNTER, FORWARD_METRIC, put_greatest, put_rates
from cmr_monitor_callbacks.recording.cells import DeviceCells
from cmr_monitor_callbacks.recording.recorder import InvalidSample, Recorder
from cmr_monitor_callbacks.recording.stage import ClosedWindow, StageStatistics

_WATCHED = [ROW["error_count"], ROW["nonfinite_count"]]
MOVES: Final = (
    *("states_stored", "states_loaded"),
    *("eviction_count", "states_overwritten", "states_merged", "states_cleared"),
)
"""Counters of entries that come into a buffer (the first two) and leave it."""
_CAME = [ROW[name] for name in MOVES[:2]]
_WENT = [ROW[name] for name in MOVES[2:]]
OnInvalid = Callable[[InvalidSample], None]


@dataclass(frozen=True)
class Reading:
    """What a finished window says.

    Attributes:
        window: shape ``(metrics, width)``: every metric of the window.
        counters: shape ``(counters, width)``: counters since the start of the stage.
        statistics: the window's packed statistics.
        run: packed statistics since the start of the stage; a copy.
        by_rank: the window's by rank, see `ranks`; None where there is one process.
        run_by_rank: the run's by rank, as far as there were several; a copy.
    """

    window: NDArray[np.float64]
    counters: NDArray[np.float64]
    statistics: Packed
    run: Packed
    by_rank: Packed | None = None
    run_by_rank: Packed | None = None


class Ledger:
    """Recorder, device cells and the statistics of each stage.

    Args:
        keep_times: raw durations to keep of each kind.
        on_invalid: told of each value that was not taken.
        by_layer: whether durations go to histograms of each layer, too.
    """

    def __init__(self, keep_times: int, on_invalid: OnInvalid, *, by_layer: bool = False) -> None:
        self._by_layer = by_layer
        self.lock = Lock()
        """Held while statistics move on; live statistics may be asked for by any thread."""
        self._thread = threading.get_ident()
        self.layout = Layout()
        """Layers of this process, in order of arrival."""
        self.shared = self.layout
        """Layers of all ranks."""
        self.recorder = Recorder(by_layer=by_layer)
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
        self._watch_nothing()
        self.clear()

    def _watch_nothing(self) -> None:
        self.moves = np.zeros((len(MOVES), self.layout.width))
        """By kind (`MOVES`) and column: entries that came and went, as far as the host was told;
        those of a sanity check, which is thrown away, left out."""
        self.entered: set[int] = set()
        """Columns of layers into which anything came."""
        self.keeps_books = False
        """Whether anybody asks for the two."""
        self._live: tuple[list[int], list[int]] = [], []
        self.recorder.spoken.clear()
        self.recorder.unseen.clear()

    @locked
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
        self._holds = Packed.empty(self.layout.width)
        self._train = StageStatistics(self.layout)
        self._other = self._train

    def forget_layers(self) -> None:
        """Forget every number and every layer; no probe may be attached."""
        self.layout = self.shared = Layout()
        self.cells = DeviceCells()
        self._watch_nothing()
        self.clear()

    @property
    def current(self) -> StageStatistics:
        """Statistics of the stage that is recorded now."""
        return self._train if self.stage == "train" else self._other

    @property
    def train(self) -> StageStatistics:
        """Statistics of training."""
        return self._train

    @locked
    def enter(self, stage: str) -> None:
        """What is recorded from now on belongs to another stage."""
        self.fold()
        if self.recorder.late is not None:
            self.recorder.late.drop()
        self.stage = stage
        if stage != "train":
            self._other = StageStatistics(self.layout)

    def declare_live(self, rows: Iterable[int], column: int) -> None:
        """From now on these counters are 0 where nothing comes, not without data.

        Args:
            rows: of counts.
            column: of the layer.
        """
        known = set(zip(*self._live, strict=True))
        for row in rows:
            unseen = STATISTICS[row].component in self.recorder.unseen
            if (row, column) not in known and not unseen:
                self._live[0].append(row)
                self._live[1].append(column)

    def distrust(self, components: Iterable[str]) -> None:
        """Of these not all can be seen: none of what is seen is taken, and nothing is 0."""
        self.recorder.unseen.update(components)
        rows = {i for i, s in enumerate(STATISTICS) if s.component in self.recorder.unseen}
        live = [(row, column) for row, column in zip(*self._live, strict=True) if row not in rows]
        self._live = [row for row, _ in live], [column for _, column in live]

    @locked
    def fold(self, *, devices: bool = True) -> None:
        """Move what was recorded into the current stage.

        Args:
            devices: whether to start reading the devices, which the thread that writes to them may
                do alone.
        """
        keep = self._keep if self.stage == "train" else {}
        packed, events = self.recorder.drain(self.layout.width, keep, devices=devices)
        reads = self.cells.read() if devices else []
        if not events and not reads and not self.recorder.came_late:
            return
        self.events += events
        if self.stage == "train":
            self.dirty = self.dirty or events > 0
        if self.keeps_books:
            self._keep_books(packed)
        # where a source is live and nothing went wrong, 0 is a number
        packed.samples[_WATCHED] += 1
        if self._live[0]:
            packed.samples[self._live] += 1
        for sample in self.recorder.invalid:
            self.invalid_samples += 1
            if sample.nonfinite:
                packed.values[ROW["nonfinite_count"], sample.column] += 1
                row = ROW_OF.get((sample.component, sample.field))
                if row is not None:
                    packed.values[row, sample.column] += 1
            self._on_invalid(sample)
        self.recorder.invalid.clear()
        self.current.fold(packed, reads)

    def _keep_books(self, packed: Packed) -> None:
        if self.stage != "sanity":
            moves = packed.values[_CAME + _WENT]
            moves[:, : self.moves.shape[1]] += self.moves
            self.moves = moves
        self.entered.update(np.flatnonzero(packed.values[_CAME].any(axis=0)).tolist())

    @property
    def came(self) -> NDArray[np.float64]:
        """By column: entries that came less those that went."""
        came: NDArray[np.float64] = self.moves[: len(_CAME)].sum(axis=0)
        came -= self.moves[len(_CAME) :].sum(axis=0)
        return came

    @locked
    def close(self, step: int, time: float) -> ClosedWindow:
        """End the current stage's window."""
        self._thread = threading.get_ident()
        self.fold()
        if self.stage == "train":
            self.dirty = False
        return self.current.close(step, time)

    @locked
    def settle(self, closed: ClosedWindow, stage: StageStatistics, *, wait: bool = True) -> Packed:
        """A closed window's statistics in this rank's own columns, with what holds now.

        Args:
            closed: the window; to be settled once.
            stage: whose it is.
            wait: for device numbers that have not arrived; else they go to the next window.
        """
        window, reads = stage.settle(closed, wait=wait)
        for read in reads:
            for component, column, name, count in read.rejected():
                self.invalid_samples += count
                text = f"{count} on the device"
                self._on_invalid(InvalidSample(component, name, column, text, "out of range"))
        window.widen(self.layout.width)
        self._holds.widen(window.width)
        self._holds.take_gauges(window)
        window.take_gauges(self._holds)
        return window

    @locked
    def share(self, layout: Layout) -> None:
        """Keep the run by the columns of all ranks from now on; a layer keeps its numbers."""
        columns = [0, *(layout.column(layer) for layer in self.shared.layers)]
        for stage in {id(s): s for s in (self._train, self._other)}.values():
            stage.run.widen(self.shared.width)
            stage.run = stage.run.moved(columns, layout.width)
        self.shared = layout

    @locked
    def finish(
        self, window: Packed, stage: StageStatistics, by_rank: Packed | None = None
    ) -> Reading:
        """Add a window to its stage and read both.

        Args:
            window: statistics in the columns of `shared`.
            stage: whose they are.
            by_rank: the same by rank, where there are several.
        """
        stage.run.widen(self.shared.width)
        stage.add(window, by_rank)
        stage.run.take_gauges(window)
        window.widen(stage.run.width)
        window.take_gauges(stage.run)
        return self._reading(window, stage.run.copy(), by_rank, stage.by_rank)

    def _reading(
        self, window: Packed, run: Packed, by_rank: Packed | None, run_by_rank: Packed | None
    ) -> Reading:
        table, counters = self._reader.read_both(window, run)
        if by_rank is not None:
            put_rates(table, by_rank)
            put_greatest(table, by_rank, FORWARD_METRIC)
        if run_by_rank is not None:
            put_greatest(counters, run_by_rank, FORWARD_COUNTER)
            run_by_rank = run_by_rank.copy()
        return Reading(table, counters, window, run, by_rank, run_by_rank)

    @locked
    def peek(self) -> Reading:
        """What the training window begun would say with this process's numbers; ends nothing.

        Another thread than the one that ends windows sees the devices' numbers of ended ones only.
        """
        self.fold(devices=self._thread == threading.get_ident())
        window = moved(self._train.in_hand(), self.layout.layers, self.shared.layers)
        run = self._train.run.copy()
        run.add(window)
        window.widen(run.width)
        return self._reading(window, run, None, self._train.by_rank)

    @locked
    def state(self, *, alone: bool) -> dict[str, Any]:
        """Plain data: layers, the training run, and (with one process) the window begun."""
        self.fold()
        return {
            "layers": list(self.shared.layers),
            "window_begun": self.dirty and alone,
            **self._train.state(self.shared.width, alone=alone),
        }

    @locked
    def load(self, state: Mapping[str, Any], *, first: bool) -> None:
        """The inverse of `state`; layers may have got other columns since.

        Args:
            state: what `state` gave.
            first: whether this process takes over the window begun and what it counted.
        """
        self.clear()
        self.shared = self.layout
        columns = [0, *(self.layout.column(layer) for layer in state["layers"])]
        self._train.load(state, columns, window=first, by_layer=self._by_layer)
        self.dirty = state["window_begun"] and first

    @locked
    def drop_window(self) -> None:
        """Forget training's window in hand, with what was recorded since."""
        self.fold()
        self._train.close(0, 0.0)
        self.dirty = False

    def _keep_last(self, name: str, seconds: NDArray[np.float64]) -> None:
        kept = self.recent_times.get(name)
        if kept is not None and len(seconds) < self._keep_times:
            seconds = np.concatenate((kept, seconds))
        # a new mapping: snapshots hold the old one
        self.recent_times = {**self.recent_times, name: seconds[-self._keep_times :]}
