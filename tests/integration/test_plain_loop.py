"""Without a Trainer: plain loops, the specification's calls, what an import loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import (
    CMRMonitorError,
    CMRPerformanceMonitor,
    CMRProbe,
    InMemorySink,
)
from cmr_monitor_callbacks.clock import ManualClock

ROOT: Final = Path(__file__).resolve().parents[2]
MOST: Final = 2 << 20
"""Bytes that an allocator and Python's caches may take on, whatever the number of steps."""


def test_importing_the_probe_loads_neither_lightning_nor_torchmetrics() -> None:
    code = (
        "import sys; from cmr_monitor_callbacks import CMRProbe; CMRProbe(1); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('pytorch_lightning', 'lightning', 'torchmetrics', 'tensorboard', 'pydantic')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_monitor_loads_no_lightning() -> None:
    code = (
        "import sys; from cmr_monitor_callbacks import CMRPerformanceMonitor; "
        "CMRPerformanceMonitor(); print([m for m in sys.modules if m.split('.')[0] in "
        "('pytorch_lightning', 'lightning')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_windows_in_seconds_and_a_sink_of_ones_own() -> None:
    clock = ManualClock(100.0)
    model = nn.Module()
    model.probe = CMRProbe("encoder")
    monitor = CMRPerformanceMonitor({"metric_collection_interval": 10.0}, model=model, clock=clock)
    sink = InMemorySink()
    monitor.sinks.append(sink)
    for _ in range(25):
        with monitor.track_performance():
            model.probe.capture(4, 3, 2, 0.5)
            clock.advance(1.0)
    assert [report.snapshot.step for report in sink.reports] == [9, 19]
    assert sink.reports[-1].scalars()["cmr_capture/states_stored"] == 40
    assert monitor.snapshot.value("step_time", over="window") == 1.0
    monitor.flush()
    assert monitor.snapshot.value("states_stored", layer="encoder") == 50


def test_the_specifications_record_calls() -> None:
    monitor = CMRPerformanceMonitor()
    monitor.record_capture(4, 45, 0.001)
    monitor.record_capture(6, 90, 0.002, states_captured=100, states_attempted=105)
    monitor.record_reconstruction(6, 8, 0.003)
    monitor.flush()
    snapshot = monitor.snapshot
    assert snapshot.layers("states_stored") == {4: 45.0, 6: 90.0}
    assert snapshot.value("storage_efficiency") == pytest.approx(
        0.9
    )  # of layer 6, which gives both
    assert snapshot.layers("capture_calls") == {4: 1.0, 6: 1.0}
    assert monitor.get_stats()["metrics"]["capture_times"] == [0.001, 0.002]


def test_live_statistics_see_the_window_begun_and_change_nothing() -> None:
    monitor = CMRPerformanceMonitor({"enable_real_time": False})
    with pytest.raises(CMRMonitorError, match="enable_real_time"):
        monitor.get_live_stats()
    monitor.enable_real_time_monitoring()
    for stored in (45, 90):
        monitor.record_capture(4, stored, 0.001, states_captured=100)
        live = monitor.get_live_stats()
    assert live["metrics"]["states_stored_per_layer"] == {4: 135}
    assert live["health"]["score"] == 100.0
    model = nn.Module()
    model.probe = CMRProbe(6)
    monitor.attach(model)
    model.probe.capture(10, torch.tensor(9), torch.tensor(8))
    for _ in range(2):  # looking twice counts once
        live = monitor.get_live_stats()
        assert live["metrics"]["states_stored_per_layer"] == {4: 135, 6: 8}
    assert monitor.windows == 0
    monitor.flush()
    assert monitor.snapshot.value("states_stored") == 143


def grown(*arguments: str) -> int:
    """Bytes that a process of its own takes on; see `tests.growth`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.growth", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("what", "steps"), [("loop", 1_000_000), ("fit", 60_000)])
def test_steps_take_no_memory(what: str, steps: int) -> None:
    assert grown(what, str(steps)) < MOST


@pytest.mark.parametrize(
    ("what", "steps", "leaked"), [("loop", 50_000, "64"), ("fit", 10_000, "512")]
)
def test_memory_that_steps_take_is_seen(what: str, steps: int, leaked: str) -> None:
    """A leak of one small object a step, in far fewer steps than those."""
    assert grown(what, str(steps), leaked) > MOST


def test_a_failure_of_the_monitor_is_a_finding_of_its_health() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    with monitor.track_performance():
        pass
    assert monitor.get_health_status()["components"]["monitor"] == "healthy"
    monitor.note_failure("reduction", RuntimeError("rank 1 is gone"))
    with monitor.track_performance():
        pass
    [alert] = monitor.get_health_status()["firing"]
    assert (alert["rule"], alert["severity"], alert["value"]) == ("monitor_failing", "warning", 1.0)
    assert monitor.get_health_status()["components"]["monitor"] == "warning"
