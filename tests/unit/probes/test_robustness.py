"""What is given wrongly, or as a tensor, or out of order, through real probes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe


def watched() -> tuple[CMRProbe, CMRPerformanceMonitor]:
    model = nn.Module()
    model.probe = probe = CMRProbe(4)
    return probe, CMRPerformanceMonitor(alert_config={"enable_alerts": False}, model=model)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_text() -> None:
    probe, monitor = watched()
    probe.error(Unprintable())
    monitor.close_window()
    assert monitor.snapshot.value("error_count") == 1
    assert "Unprintable" in monitor.error_log[-1]


class Hostile:
    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


GARBAGE = {
    "str": "many",
    "digits": "7",
    "list": [1],
    "object": object(),
    "hostile": Hostile(),
    "complex": 1j,
    "nan": math.nan,
    "negative": -1,
    "huge": 10**400,
    "array": np.zeros(3),
    "tensor of 3": torch.zeros(3),
    "empty tensor": torch.zeros(0),
    "nan tensor": torch.tensor(math.nan),
    "negative tensor": torch.tensor(-1.0),
    "complex tensor": torch.tensor(1j),
    "meta tensor": torch.zeros((), device="meta"),
}


@pytest.mark.parametrize("kind", ["capture", "reconstruction", "buffer", "retrieval"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_never_raises_and_is_counted(kind: str, garbage: str) -> None:
    probe, monitor = watched()
    valid = {"capture": (9, 8, 7), "reconstruction": (2,), "buffer": (5, 9), "retrieval": (1, 2)}
    getattr(probe, kind)(GARBAGE[garbage], *valid[kind][1:])
    getattr(probe, kind)(*valid[kind])
    monitor.close_window()
    assert monitor.snapshot.value("invalid_samples") == 1
    assert monitor.snapshot.value("nonfinite_count") == (garbage in ("nan", "nan tensor"))
    taken = {
        "capture": ("states_attempted", 9),
        "reconstruction": ("memories_used", 2),
        "buffer": ("total_entries", 5),
        "retrieval": ("total_retrievals", 1),
    }
    name, expected = taken[kind]
    assert monitor.snapshot.value(name) == expected


@pytest.mark.parametrize("plain_first", [True, False])
@pytest.mark.parametrize("other", [np.int64, torch.tensor], ids=["numpy", "tensor"])
def test_the_last_look_at_the_buffer_holds(plain_first: bool, other: Any) -> None:
    probe, monitor = watched()
    looks = [(10, 100), (other(20), other(200))]
    for look in looks if plain_first else reversed(looks):
        probe.buffer(*look)
    monitor.close_window()
    got = [monitor.snapshot.value(name) for name in ("total_entries", "capacity")]
    assert got == ([20, 200] if plain_first else [10, 100])


def test_seconds_as_a_tensor_are_no_duration_of_0() -> None:
    probe, monitor = watched()
    probe.capture(1, 1, 1, torch.tensor(0.5))
    monitor.close_window()
    assert monitor.snapshot.value("avg_capture_time") == 0.5
    assert not monitor.snapshot.value("capture_time_p50") < 0.4
    assert 0.0 not in monitor.get_stats()["metrics"].get("capture_times", [])


def test_a_tensor_that_is_not_finite_counts_once_a_field() -> None:
    probe, monitor = watched()
    nan = torch.tensor(math.nan)
    probe.retrieval(nan, 4, 1, 0.5)
    probe.buffer(nan, 10)
    monitor.close_window()
    assert monitor.snapshot.value("nonfinite_count") == 2
    assert monitor.snapshot.value("invalid_samples") == 2


def test_a_tensor_that_is_not_finite_is_no_look_at_the_buffer() -> None:
    probe, monitor = watched()
    probe.buffer(7, 10)
    probe.buffer(torch.tensor(math.nan), 10)
    monitor.close_window()
    assert monitor.snapshot.value("total_entries") == 7


def test_quality_beyond_1_as_a_tensor() -> None:
    probe, monitor = watched()
    probe.reconstruction(1, torch.tensor(1.5))
    probe.reconstruction(1, torch.tensor(0.5))
    monitor.close_window()
    assert monitor.snapshot.value("reconstruction_quality") == 0.5


def test_no_data_about_a_gauge_keeps_what_was_known() -> None:
    probe, monitor = watched()
    probe.buffer(7, 10, 1024)
    probe.buffer(8, 10)
    monitor.close_window()
    assert monitor.snapshot.value("total_entries") == 8
    assert monitor.snapshot.value("memory_size_mb") == 1 / 1024


@pytest.mark.parametrize("requested", [2, np.int64(2), torch.tensor(2)])
def test_a_call_of_no_operations_says_nothing_of_their_time(requested: Any) -> None:
    probe, monitor = watched()
    probe.retrieval(requested, 4, seconds=0.5)
    probe.retrieval(0, 0, seconds=9.0)
    monitor.close_window()
    assert monitor.snapshot.value("avg_retrieval_time") == 0.25
    assert not monitor.snapshot.value("retrieval_time_p99") > 0.26
