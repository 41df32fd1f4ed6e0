"""A window's snapshot: statistics read, users' own numbers and the monitor's beside them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from cmr_monitor_callbacks.custom import Tracked, from_table
from cmr_monitor_callbacks.distributed import Exchanged, moved
from cmr_monitor_callbacks.errors import LayerError
from cmr_monitor_callbacks.packed import Packed
from cmr_monitor_callbacks.recording.ledger import Reading
from cmr_monitor_callbacks.recording.own import OwnNumbers
from cmr_monitor_callbacks.recording.stage import ClosedWindow, StageStatistics
from cmr_monitor_callbacks.snapshot import Snapshot
from cmr_monitor_callbacks.windows.parts import Parts

Tracks = tuple[Mapping[str, Tracked], Mapping[str, Tracked]]
"""What users track: of a window, and of the run."""


class Numbers:
    """Makes snapshots, and counts what the monitor says of itself.

    Args:
        parts: of the monitor.

    Attributes:
        own: the monitor's own numbers.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.forget()

    def forget(self) -> None:
        """A run begins anew."""
        self.own = OwnNumbers()
        self._dropped_before = self._dropped

    def counts(self) -> dict[str, float]:
        """What this process counted of the monitor itself."""
        parts = self._parts
        return {
            "events": float(parts.ledger.events),
            "invalid_samples": float(parts.ledger.invalid_samples),
            "failures": float(parts.failures.count),
            "dropped_events": float(self._dropped - self._dropped_before),
        }

    @property
    def _dropped(self) -> int:
        """What this process lost since it was made."""
        parts = self._parts
        return parts.keeper.lost + parts.alerts.delivery.dropped + parts.listening.timing.dropped

    def totals(self) -> dict[str, int]:
        """The counts of all ranks, as far as they were heard."""
        return {name: int(count) for name, count in self.own.totals(self.counts()).items()}

    def resume(self, totals: Mapping[str, int], *, first: bool) -> None:
        """Go on from counts that were saved.

        Args:
            totals: what `totals` gave; older ones have no ``dropped_events``.
            first: whether this process takes them over.
        """
        if first:
            self._parts.failures.count = totals["failures"]
            self._parts.ledger.events = totals["events"]
            self._parts.ledger.invalid_samples = totals["invalid_samples"]
            self._dropped_before -= totals.get("dropped_events", 0)
        self.own.resume({name: totals.get(name, 0) for name in self.counts()})

    def begin_step(self) -> None:
        """Before a step: events are counted from the first on."""
        if self.own.since is None:
            self.own.begin(self._parts.clock.monotonic(), self._parts.ledger.events)

    def close(self, now: float) -> None:
        """At the end of a window: measure this process."""
        parts = self._parts
        self.own.resources = parts.resources.window()
        rate = parts.alerts.rate(parts.clock.wall())
        self.own.close(now, parts.ledger.events, parts.keeper.latency, rate)

    def of_window(
        self, closed: ClosedWindow, window: Packed, exchanged: Exchanged | None
    ) -> tuple[Snapshot, dict[str, float]]:
        """The snapshot of a window of training that has ended.

        Args:
            closed: the window.
            window: its statistics, of this process.
            exchanged: what all ranks have; None: there is one process.

        Returns:
            the snapshot, and its own numbers, to which the verdict is added once it is judged.
        """
        parts = self._parts
        reading = self._finish(window, parts.ledger.train, exchanged)
        time = closed.time if exchanged is None else exchanged.first.time
        own = self.own.read(self.counts(), reading, exchanged)
        own.update(self._compared(exchanged))
        own["sample_every"] = float(parts.sampling.window_every)
        tracked = self._finish_tracked(exchanged)
        return self._snapshot("train", reading, closed.step, time, own, exchanged, tracked), own

    def of_stage(
        self,
        stage: str,
        closed: ClosedWindow,
        window: Packed,
        statistics: StageStatistics,
        exchanged: Exchanged | None,
    ) -> Snapshot:
        """The snapshot of a validation, a test or a prediction that is over."""
        reading = self._finish(window, statistics, exchanged)
        own = self._compared(exchanged)
        return self._snapshot(stage, reading, closed.step, closed.time, own)

    def of_now(self) -> Snapshot:
        """What this process recorded in training until now; ends nothing, runs no collective."""
        parts = self._parts
        reading = parts.ledger.peek()
        step, time = parts.position.step, parts.clock.wall()
        parts.fold_tracked()
        own = {**parts.alerts.report.numbers(), **self.counts()}
        own["sample_every"] = float(parts.sampling.every)
        tracked = parts.tracking.in_hand()
        return self._snapshot("train", reading, step, time, own, tracked=tracked)

    def _finish(
        self, window: Packed, stage: StageStatistics, exchanged: Exchanged | None
    ) -> Reading:
        ledger = self._parts.ledger
        if exchanged is not None:
            return ledger.finish(exchanged.statistics, stage, exchanged.by_rank)
        for layer in ledger.layout.layers:  # where the others are lost these come on top
            with suppress(LayerError):  # it looks like another rank's: left out, that was said
                ledger.shared.column(layer)
        return ledger.finish(moved(window, ledger.layout.layers, ledger.shared.layers), stage)

    def _compared(self, exchanged: Exchanged | None) -> dict[str, float]:
        headers = None if exchanged is None else exchanged.headers
        return self._parts.examiner.take_compared(headers)

    def _finish_tracked(self, exchanged: Exchanged | None) -> Tracks:
        exchange, everybody = self._parts.ranks.exchange, None
        if exchanged is not None and exchange is not None:
            everybody = from_table(exchanged.custom, exchange.names)
        window = self._parts.tracking.finish(everybody)
        return window, self._parts.tracking.run

    def _snapshot(
        self,
        stage: str,
        reading: Reading,
        step: int,
        time: float,
        own: Mapping[str, float],
        exchanged: Exchanged | None = None,
        tracked: Tracks = ({}, {}),
    ) -> Snapshot:
        parts = self._parts
        return Snapshot(
            stage=stage,
            step=step,
            time=time,
            world_size=1 if reading.by_rank is None else reading.by_rank.width - 1,
            layer_ids=parts.ledger.shared.layers,
            statistics=reading.run,
            counters=reading.counters,
            window=reading.window,
            own=own,
            sources=parts.listening.sources(parts.sampling.window_every),
            recent_times=parts.ledger.recent_times,
            by_rank=reading.by_rank,
            run_by_rank=reading.run_by_rank,
            window_statistics=reading.statistics,
            cells=None if exchanged is None else exchanged.cells,
            own_window=self.own.window if stage == "train" else {},
            own_by_rank=self.own.by_rank if stage == "train" else {},
            custom=tracked[0],
            custom_run=tracked[1],
        )
