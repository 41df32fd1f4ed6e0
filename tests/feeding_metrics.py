"""The reference's events, fed to the Metric classes, and what each class is to answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cmr_monitor_callbacks.metrics import (
    BufferMetric,
    CaptureMetric,
    ErrorMetric,
    LatencyMetric,
    LayeredMetric,
    ReconstructionMetric,
    RetrievalMetric,
    ThroughputMetric,
)
from tests.feeding import arguments, step_arguments
from tests.reference import (
    Buffer,
    Capture,
    Error,
    Event,
    Layer,
    Reconstruction,
    Retrieval,
    Step,
    evaluate,
)

LAYERS: tuple[int | str, ...] = (4, 11, "deep")
TAGS = {"layer_04": 4, "layer_11": 11, "layer_deep": "deep"}
_PERCENTS = (50, 95, 99)

NAMES: dict[type[LayeredMetric], tuple[str, ...]] = {
    CaptureMetric: (
        "states_considered",
        "states_attempted",
        "states_captured",
        "states_stored",
        "states_rejected",
        "capture_calls",
        "capture_efficiency",
        "storage_efficiency",
        "selection_rate",
        "avg_capture_time",
        *(f"capture_time_p{p}" for p in _PERCENTS),
    ),
    ReconstructionMetric: (
        "reconstruction_calls",
        "total_reconstructions",
        "memories_used",
        "reconstruction_quality",
        "avg_reconstruction_time",
        *(f"reconstruction_time_p{p}" for p in _PERCENTS),
    ),
    BufferMetric: (
        "total_entries",
        "capacity",
        "utilization_rate",
        "memory_size_mb",
        "eviction_count",
        "states_cleared",
        "states_loaded",
        "eviction_rate",
    ),
    RetrievalMetric: (
        "total_retrievals",
        "entries_retrieved",
        "cache_hits",
        "cache_hit_rate",
        "avg_retrieval_time",
        "retrieval_quality",
        *(f"retrieval_time_p{p}" for p in _PERCENTS),
    ),
    LatencyMetric: (
        "step_time",
        "data_wait",
        "avg_forward_time",
        "avg_latency",
        "total_forward_time",
        "backward_time",
        "optimizer_time",
    ),
    ThroughputMetric: ("throughput", "tokens_per_second", "tokens", "batch_size"),
    ErrorMetric: ("error_count", "error_rate"),
}
CLASSES = tuple(NAMES)

Row = dict[str, Any]


def rows(cls: type[LayeredMetric], events: Iterable[Event]) -> list[Row]:
    """Arguments of ``cls.update`` for each event that concerns the class."""
    return [row for event in events for row in _row(cls, event)]


def _row(cls: type[LayeredMetric], event: Event) -> list[Row]:
    if cls is ErrorMetric:
        return [_error_row(event)]
    if isinstance(event, Step):
        timing, amounts = step_arguments(event)
        return {LatencyMetric: [timing], ThroughputMetric: [amounts]}.get(cls, [])
    if cls is BufferMetric and isinstance(event, Capture) and event.stored is not None:
        return [{"layer": event.layer, "stored": event.stored}]
    if isinstance(event, Error):
        return []
    component, given = arguments(event)
    return [given] if component == cls.component else []


def _error_row(event: Event) -> Row:
    layer = None if isinstance(event, Step) else event.layer
    operations = {
        Capture: lambda e: 1,
        Reconstruction: lambda e: 1,
        Retrieval: lambda e: e.requested,
        Step: lambda e: e.forward_passes,
        Buffer: lambda e: None,
        Error: lambda e: None,
    }[type(event)](event)
    return {"layer": layer, "errors": int(isinstance(event, Error)), "operations": operations}


def feed(metric: LayeredMetric, events: Iterable[Event]) -> LayeredMetric:
    """Update once for each event."""
    for row in rows(type(metric), events):
        metric.update(**row)
    return metric


def answers(computed: Mapping[str, Any]) -> dict[tuple[str, Layer], float]:
    """What compute gave, by name and layer."""
    out: dict[tuple[str, Layer], float] = {}
    for key, value in computed.items():
        name, _, tag = key.partition("/")
        out[name, TAGS[tag] if tag else None] = float(value)
    return out


def wanted(
    cls: type[LayeredMetric], result: Mapping[tuple[str, Layer], float]
) -> dict[tuple[str, Layer], float]:
    """Of the reference's answers those that the class gives; error_rate of the whole only."""
    return {key: value for key, value in result.items() if key[0] in NAMES[cls]}


def reference(cls: type[LayeredMetric], events: Iterable[Event]) -> dict[Any, float]:
    return wanted(cls, evaluate(list(events)))
