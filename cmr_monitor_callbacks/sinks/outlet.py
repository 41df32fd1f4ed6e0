"""The outlet: one window's numbers, with their tags, to every sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cmr_monitor_callbacks.config import MonitoringConfig
from cmr_monitor_callbacks.health import HealthReport, Transition
from cmr_monitor_callbacks.sinks.base import Sink, WindowReport
from cmr_monitor_callbacks.sinks.tags import TagTable, rank_scalars
from cmr_monitor_callbacks.snapshot import Snapshot

Guard = Callable[[str], AbstractContextManager[None]]
Shown = tuple[list[str], list[float]]


class Outlet:
    """Hands snapshots to sinks; one that fails keeps no other from its numbers.

    Args:
        config: which metrics are shown.
        guard: what gets over a sink's failure.

    Attributes:
        sinks: where numbers go.
    """

    def __init__(self, config: MonitoringConfig, guard: Guard) -> None:
        self._config = config
        self._guard = guard
        self.sinks: list[Sink] = []
        self._tables: dict[str, tuple[Any, TagTable]] = {}
        self._shown: Shown = [], []
        self.forget()

    def forget(self) -> None:
        """Nothing was shown yet; the score is there from the start."""
        self._shown = ["cmr_health/score"], [100.0]

    @property
    def shown(self) -> Shown:
        """Tags and values of the whole model as they were shown last."""
        return self._shown

    def restore(self, shown: dict[str, float]) -> None:
        """Take over what was shown last before a restart."""
        self._shown = list(shown), list(shown.values())

    def whole(self, snapshot: Snapshot) -> Shown:
        """Tags and values of the whole model in a snapshot."""
        tags, values, whole = self._table(snapshot).scalars(snapshot)
        return tags[:whole], values[:whole]

    def emit(
        self, snapshot: Snapshot, health: HealthReport, transitions: Sequence[Transition]
    ) -> None:
        """Hand a window's numbers to every sink."""
        tags, values, whole = self._table(snapshot).scalars(snapshot)
        if snapshot.stage == "train":
            self._shown = tags[:whole], values[:whole]
        rank_tags, rank_values = rank_scalars(snapshot)
        if rank_tags:
            tags, values = [*tags, *rank_tags], [*values, *rank_values]
        report = WindowReport(snapshot, health, transitions, tags, values, whole)
        for sink in self.sinks:
            with self._guard(type(sink).__name__):
                sink.write(report)

    def flush(self) -> None:
        """Have every sink write what is pending."""
        for sink in self.sinks:
            with self._guard(type(sink).__name__):
                sink.flush()

    def _table(self, snapshot: Snapshot) -> TagTable:
        layers, stage = snapshot.layer_ids, snapshot.stage
        known = self._tables.get(stage)
        if known is None or known[0] != layers:
            config = self._config
            table = TagTable(stage, layers, config.layer_metrics, config.whole_metrics)
            known = self._tables[stage] = layers, table
        return known[1]
