"""Tensors that act as memories: what they hold, and nothing that cannot be known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor

EACH: dict[str, Any] = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Queue(nn.Module):
    """A queue of keys with a pointer, as contrastive learning has it."""

    def __init__(self, counted: bool) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(6, 3))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        if counted:
            self.count = 0

    def forward(self, keys: Tensor) -> Tensor:
        start = int(self.queue_ptr)
        self.queue[start : start + len(keys)] = keys
        self.queue_ptr[0] = (start + len(keys)) % 6
        if hasattr(self, "count"):
            self.count = min(6, self.count + len(keys))
        return keys


class Segments(nn.Module):
    """Keeps the states of the last segment, as recurrent transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.mems = [torch.zeros(0, 2, 4), torch.zeros(0, 2, 4)]

    def forward(self, x: Tensor) -> Tensor:
        self.mems = [torch.cat((old, x))[-5:].detach() for old in self.mems]
        return x


def test_a_queue_fills_and_then_is_full() -> None:
    for counted in (True, False):
        model = nn.Module()
        model.bank = Queue(counted)
        monitor = CMRPerformanceMonitor(EACH, model=model)
        held = []
        for _ in range(4):
            with monitor.track_performance():
                model.bank(torch.ones(2, 3))
            held.append(monitor.snapshot.value("total_entries", layer="bank"))
        snapshot = monitor.snapshot
        assert held == [2, 4, 6, 6]
        assert snapshot.value("capacity") == 6
        assert snapshot.value("memory_size_mb") * 2**20 == 6 * 3 * 4
        assert snapshot.source("total_entries") == "polled:bank.queue"
        for name in ("states_stored", "eviction_count", "states_loaded", "states_cleared"):
            assert math.isnan(snapshot.value(name)), name
        assert "not known: bank" in monitor.describe()
        monitor.detach()


def test_the_states_of_earlier_segments_are_counted_by_position_and_row() -> None:
    model = nn.Module()
    model.layer = Segments()
    monitor = CMRPerformanceMonitor(EACH, model=model)
    held = []
    for _ in range(3):
        with monitor.track_performance():
            model.layer(torch.ones(3, 2, 4))
        held.append(monitor.snapshot.value("total_entries"))
    assert held == [12, 20, 20]
    assert math.isnan(monitor.snapshot.value("capacity"))
    assert monitor.snapshot.value("memory_size_mb") * 2**20 == 20 * 4 * 4
    monitor.detach()


def test_a_parameter_is_no_memory() -> None:
    model = nn.Module()
    model.memory = nn.Parameter(torch.zeros(4, 4))
    monitor = CMRPerformanceMonitor(EACH)
    assert monitor.attach(model) == 0
