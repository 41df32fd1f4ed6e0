"""A device that works later than it is told, with events that have the shapes of CUDA's.

``torch.cuda.Event(enable_timing=True)``: `record`, `query` (True of one that was never recorded),
`elapsed_time` in milliseconds, which raises where one of the two is not over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.recording.device_clock import DeviceClock


class FakeDevice:
    """One stream: work is put at its end, and done when `run` says so."""

    def __init__(self) -> None:
        self.now = self.end = 0.0
        self.made = self.queries = 0
        self.capturing = self.broken = False

    def launch(self, seconds: float) -> None:
        """Put work on the stream; returns at once."""
        self.end = max(self.end, self.now) + seconds

    def run(self, seconds: float | None = None) -> None:
        """Let time pass on the device; None: until all is done."""
        self.now = self.end if seconds is None else self.now + seconds

    def event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent(self)

    def clock(self, size: int = 2048) -> DeviceClock:
        return DeviceClock(self.event, lambda e: e.record(), lambda: self.capturing, size)

    def time(self, monitor: CMRPerformanceMonitor, size: int = 2048) -> None:
        """Have whatever a monitor attaches to be a model on this device."""
        timing = monitor._listening.timing
        timing._make = lambda device: self.clock(size)
        timing._find = _on_cuda


def _on_cuda(model: nn.Module) -> torch.device:
    return torch.device("cuda", 0)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._at: float | None = None

    def record(self) -> None:
        if self._device.capturing:
            raise AssertionError("an event of its own in the graph that is being captured")
        if self._device.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self._at = max(self._device.end, self._device.now)

    def query(self) -> bool:
        if self._device.capturing:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self._device.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self._device.queries += 1
        return self._at is None or self._at <= self._device.now

    def elapsed_time(self, end_event: Any) -> float:
        if self._at is None or end_event._at is None or not (self.query() and end_event.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return float((end_event._at - self._at) * 1000)
