"""The seven Metric objects of one stage, filled together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.layers import Layout
from cmr_monitor_callbacks.metrics.base import LayeredMetric
from cmr_monitor_callbacks.metrics.buffer import BufferMetric
from cmr_monitor_callbacks.metrics.capture import CaptureMetric
from cmr_monitor_callbacks.metrics.errors import ErrorMetric
from cmr_monitor_callbacks.metrics.latency import LatencyMetric
from cmr_monitor_callbacks.metrics.reconstruction import ReconstructionMetric
from cmr_monitor_callbacks.metrics.retrieval import RetrievalMetric
from cmr_monitor_callbacks.metrics.throughput import ThroughputMetric
from cmr_monitor_callbacks.packed import Packed

CLASSES: Final[tuple[type[LayeredMetric], ...]] = (
    CaptureMetric,
    ReconstructionMetric,
    BufferMetric,
    RetrievalMetric,
    LatencyMetric,
    ThroughputMetric,
    ErrorMetric,
)


class MetricSet:
    """One window of one stage: a Metric of each class over the same layers.

    Args:
        layout: the layers; shared, so that a column means the same everywhere.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.metrics: tuple[LayeredMetric, ...] = tuple(c(layout.layers) for c in CLASSES)
        self._by_kind: dict[str, list[LayeredMetric]] = {}
        for metric in self.metrics:
            self._by_kind.setdefault(metric.record, []).append(metric)

    def __iter__(self) -> Iterator[LayeredMetric]:
        return iter(self.metrics)

    def widen(self) -> None:
        """Make columns for layers that arrived since."""
        for metric in self.metrics:
            if metric.layout.width < self._layout.width:
                metric.add_layers(self._layout.layers)

    def fold(self, kind: str, events: NDArray[np.float64], slots: NDArray[np.intp]) -> None:
        """Add checked events of one kind; see `LayeredMetric.fold_events`."""
        for metric in self._by_kind[kind]:
            metric.fold_events(events, slots)

    def add_cells(self, rows: Mapping[tuple[str, int], NDArray[np.float64]]) -> None:
        """Add statistics from a device, by (kind, slot): shape ``(3, statistics)``."""
        for (kind, slot), cells in rows.items():
            metric = self._by_kind[kind][0]
            count = metric.own_count
            values, samples = cells[0, :count], cells[1, :count]
            if np.any(samples) or np.any(np.nan_to_num(values)):
                metric.add_statistics(slot, values, samples)

    def packed(self) -> Packed:
        """All statistics of the window."""
        packed = Packed.empty(self._layout.width)
        for metric in self.metrics:
            metric.pack_into(packed)
        return packed

    def reset(self) -> None:
        """Start a new window."""
        for metric in self.metrics:
            metric.reset()
