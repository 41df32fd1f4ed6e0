"""Lists that a model appends to: what is new in them is read, and nothing twice."""

from __future__ import annotations

import logging
import random
from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.probes.watches.tails import Tail

EACH: dict[str, Any] = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Times(nn.Module):
    """Keeps the durations of its calls, which nobody else sees."""

    def __init__(self, times: Any) -> None:
        super().__init__()
        self.performance_stats = {"capture_times": times, "reconstruction_times": {4: []}}

    def forward(self, *seconds: float) -> None:
        self.performance_stats["capture_times"].extend(seconds)
        self.performance_stats["reconstruction_times"][4].extend(2 * one for one in seconds)


def steps(model: Times, *passes: tuple[float, ...]) -> CMRPerformanceMonitor:
    monitor = CMRPerformanceMonitor(EACH, model=model)
    for seconds in passes:
        with monitor.track_performance():
            model(*seconds)
    return monitor


def test_the_tails_of_lists_are_the_times_of_calls() -> None:
    model = Times([9.0])
    monitor = steps(model, (0.25, 0.5), (), (0.75,))
    value = monitor.snapshot.value
    assert value("avg_capture_time") == 0.5
    assert value("avg_capture_time", over="window") == 0.75
    assert value("capture_calls") == 3
    assert value("avg_reconstruction_time", layer=4) == value("avg_reconstruction_time") == 1.0
    assert value("reconstruction_time_p50") == pytest.approx(1.0, rel=0.02)
    for name in ("avg_capture_time", "capture_time_p50"):
        source = monitor.snapshot.source(name)
        assert source == "polled:performance_stats.capture_times"
    model.performance_stats["capture_times"].clear()  # it begins anew
    with monitor.track_performance():
        model(1.5)
    assert monitor.snapshot.value("avg_capture_time", over="window") == 1.5
    monitor.detach()


def test_a_deque_that_drops_what_was_seen_is_said_not_to_be_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Times(deque(maxlen=3))
    monitor = steps(model, (1.0, 2.0), (3.0, 4.0))  # it holds 2, 3, 4
    assert monitor.snapshot.value("capture_calls") == 4
    with caplog.at_level(logging.WARNING):
        for seconds in ((5.0, 6.0, 7.0), (8.0, 9.0, 10.0)):
            with monitor.track_performance():
                model(*seconds)
    assert monitor.snapshot.value("capture_calls") == 4
    assert "not known: : performance_stats['capture_times']" in monitor.describe()
    assert sum("performance_stats['capture_times']" in text for text in caplog.messages) == 1
    with monitor.track_performance():
        model(11.0)
    assert monitor.snapshot.value("avg_capture_time", over="window") == 11.0
    monitor.detach()


def test_where_calls_are_seen_their_own_list_is_not_read() -> None:
    class Captures(Times):
        def capture_states(self, hidden_states: torch.Tensor, layer_idx: int) -> None:
            self(5.0)

    model = Captures([])
    monitor = CMRPerformanceMonitor(EACH, model=model)
    with monitor.track_performance():
        model.capture_states(torch.ones(1), 4)
    assert monitor.snapshot.value("capture_calls") == 1
    assert monitor.snapshot.value("avg_capture_time") < 1.0
    assert monitor.snapshot.value("avg_reconstruction_time") == 10.0
    monitor.detach()


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_any_way_of_growing_is_followed(bounded: bool, seed: int) -> None:
    rng = random.Random(seed)
    values: Any = deque(maxlen=40) if bounded else []
    tail = Tail(values)
    number = 0
    for _ in range(60):
        grown = rng.randrange(15)
        new = [float(number + i) for i in range(grown)]
        number += grown
        if not bounded and rng.random() < 0.2:
            del values[: rng.randrange(len(values) // 2 + 1)]  # trimmed by hand
        values.extend(new)
        assert tail.read(values) == new
