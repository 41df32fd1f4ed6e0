"""torchmetrics Metric classes for memory-augmented transformers, each useful alone."""

from cmr_monitor_callbacks.metrics.base import LayeredMetric
from cmr_monitor_callbacks.metrics.buffer import BufferMetric
from cmr_monitor_callbacks.metrics.capture import CaptureMetric
from cmr_monitor_callbacks.metrics.errors import ErrorMetric
from cmr_monitor_callbacks.metrics.latency import LatencyMetric
from cmr_monitor_callbacks.metrics.reconstruction import ReconstructionMetric
from cmr_monitor_callbacks.metrics.retrieval import RetrievalMetric
from cmr_monitor_callbacks.metrics.throughput import ThroughputMetric

__all__ = [
    "BufferMetric",
    "CaptureMetric",
    "ErrorMetric",
    "LatencyMetric",
    "LayeredMetric",
    "ReconstructionMetric",
    "RetrievalMetric",
    "ThroughputMetric",
]

CLASSES = (
    CaptureMetric,
    ReconstructionMetric,
    BufferMetric,
    RetrievalMetric,
    LatencyMetric,
    ThroughputMetric,
    ErrorMetric,
)
"""All of them: together they hold every statistic of the catalogue."""
