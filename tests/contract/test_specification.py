"""The specification's own snippets, unedited: each runs, and its dictionaries come out as shown.

They lie in ``specification/``. Where one shows numbers, a model that says the same through its
probes must be reported with those numbers, as many digits as the snippet gives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock
from examples.cmr_lm.model import CMRConfig, FullCMRModel

SNIPPETS = Path(__file__).with_name("specification")


def snippet(name: str) -> str:
    [path] = SNIPPETS.glob(f"{name}.*")
    return path.read_text(encoding="utf-8")


def shown(name: str) -> dict[str, Any]:
    """The dictionary that a snippet writes down."""
    found: dict[str, Any] = {}
    exec(snippet(name), found)
    [value] = [value for key, value in found.items() if key != "__builtins__"]
    assert isinstance(value, dict)
    return value


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(input_ids: torch.Tensor) -> FullCMRModel:
    """Small, and after a step, so that there is something in its memory."""
    config = CMRConfig(dim=16, heads=2, blocks=4, context=16, memory_layers=(1, 3), capacity=64)
    made = FullCMRModel(config)
    made(input_ids)
    return made


@pytest.fixture
def scope(model: FullCMRModel, input_ids: torch.Tensor) -> dict[str, Any]:
    """What the snippets find."""
    monitor = CMRPerformanceMonitor({"on_monitor_error": "raise"}, model=model)
    return {"model": model, "monitor": monitor, "input_ids": input_ids}


class Layers(nn.Module):
    """Holds a probe for each of two layers, and one for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.probes = CMRProbe(), {4: CMRProbe(4), 6: CMRProbe(6)}


@pytest.fixture
def layers() -> Layers:
    return Layers()


@pytest.fixture
def monitor(layers: Layers) -> CMRPerformanceMonitor:
    return CMRPerformanceMonitor({"on_monitor_error": "raise"}, model=layers, clock=ManualClock(0))


def same(ours: Any, theirs: Any) -> bool:
    """Whether a number is what the snippet shows of it, to as many digits, and of its type."""
    if isinstance(theirs, Mapping):
        return set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, int):
        return type(ours) is int and ours == theirs
    digits = len(repr(theirs).partition(".")[2])
    return isinstance(ours, float) and round(ours, digits) == theirs


def check(ours: Mapping[str, Any], name: str) -> None:
    """Every key of a snippet's dictionary is there, with its value."""
    for key, value in shown(name).items():
        assert same(ours[key], value), f"{key}: {ours[key]} is not {value}"


# -- snippets that do something -------------------------------------------------------------------


def test_current_usage(
    model: FullCMRModel, input_ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, module = ModuleType("models"), ModuleType("models.cmr_full_integrated")
    module.FullCMRModel = FullCMRModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", package)
    monkeypatch.setitem(sys.modules, "models.cmr_full_integrated", module)
    scope: dict[str, Any] = {"model": model, "input_ids": input_ids}
    exec(snippet("current_usage"), scope)
    stats = scope["perf_stats"]
    assert stats["total_captures"] > 0
    assert set(stats["states_captured_per_layer"]) == {1, 3}


def test_real_time_monitoring(scope: dict[str, Any]) -> None:
    exec(snippet("real_time"), scope)
    live = scope["live_stats"]
    assert set(live) >= {"metrics", "buffer_stats", "retrieval_stats", "health", "step"}
    assert live["step"] == 0
    assert set(live["metrics"]["states_stored_per_layer"]) == {1, 3}
    assert live["health"]["status"] in ("healthy", "warning", "critical", "unknown")
    json.dumps(live, allow_nan=False)


def test_diagnostics(scope: dict[str, Any]) -> None:
    exec(snippet("real_time"), scope)
    exec(snippet("diagnostics"), scope)
    for name in ("component_health", "hook_analysis", "memory_analysis"):
        part = scope[name]
        assert part["status"] in ("healthy", "warning", "critical", "unknown"), name
        assert isinstance(part["findings"], list), name
    assert isinstance(scope["diagnostics"]["findings"], list)
    json.dumps(scope["diagnostics"], allow_nan=False)


def test_profiling(scope: dict[str, Any]) -> None:
    exec(snippet("profiling"), scope)
    results = scope["profile_results"]
    assert set(results) >= {"sections", "operators", "memory", "gpu", "bottleneck"}
    assert results["operators"]
    json.dumps(results, allow_nan=False)


def test_the_configurations_are_settings_as_they_stand() -> None:
    monitoring = shown("monitoring_configuration")
    alerts = shown("alert_configuration")
    for monitor in (
        CMRPerformanceMonitor(monitoring, alert_config=alerts),
        CMRMonitorCallback(monitoring=monitoring, alerts=alerts).monitor,
    ):
        assert monitor.config.metric_collection_interval == 1.0
        assert monitor.config.health_check_interval == 5.0
        assert monitor.config.max_history_size == 1000
        assert monitor.config.alert_thresholds.low_efficiency == 0.7
        assert monitor.alert_config.alert_cooldown == 60.0
        assert monitor.alert_config.alert_channels == ("console", "log")
        assert monitor.alert_config.escalation_rules["warning"].delay == 300.0


# -- dictionaries with numbers --------------------------------------------------------------------


def test_timing_metrics(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    for seconds in (0.001, 0.002, 0.001):
        layers.probes[4].capture(1, 1, 1, seconds)
    for seconds in (0.003, 0.002):
        layers.probes[4].reconstruction(1, None, seconds)
    monitor.record_step(0.050, None, 0.050, None, None, None, 1)
    check(monitor.get_live_stats()["metrics"], "timing_metrics")


def count(layers: Layers) -> None:
    layers.probes[4].capture(53, 50, 45)
    layers.probes[6].capture(105, 100, 90)
    for layer, calls in ((4, 25), (6, 50)):
        for _ in range(calls):
            layers.probes[layer].reconstruction(8, 0.85)


def test_count_metrics(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    count(layers)
    check(monitor.get_live_stats()["metrics"], "count_metrics")


def test_efficiency_metrics(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    count(layers)
    layers.probes[4].buffer(500, 800)
    layers.probes[6].buffer(1000, 1200)
    layers.whole.retrieval(200, 1600, 160)
    check(monitor.get_live_stats()["metrics"], "efficiency_metrics")


def test_buffer_statistics(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    layers.probes[4].capture(520, 520, 520)
    layers.probes[6].capture(1030, 1030, 1030)
    layers.probes[4].buffer(500, 800, round(15.0 * 2**20), evicted=20)
    layers.probes[6].buffer(1000, 1200, round(30.2 * 2**20), evicted=30)
    check(monitor.get_live_stats()["buffer_stats"], "buffer_statistics")


def test_retrieval_statistics(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    layers.whole.retrieval(200, 1600, 160, 0.4, 0.88)
    check(monitor.get_live_stats()["retrieval_stats"], "retrieval_statistics")


def test_the_json_report(monitor: CMRPerformanceMonitor, layers: Layers) -> None:
    monitor.set_alert("reconstruction_quality", "< 0.9", lambda alert: None)
    for step in range(3):
        count(layers)
        layers.probes[4].buffer(500, 800)
        layers.whole.retrieval(200, 1600, 160, 0.4, 0.88)
        monitor.record_step(0.025, 0.0, 0.025, None, None, None, 1, samples=4)
        monitor.step(step)
        monitor.close_window()
    ours = monitor.generate_report()
    theirs = json.loads(snippet("json_report"))
    assert set(ours) >= set(theirs)
    for stamp in (ours["timestamp"], theirs["timestamp"]):
        datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")
    assert ours["system_health"] == theirs["system_health"]
    assert set(ours["performance_metrics"]) >= set(theirs["performance_metrics"])
    assert ours["performance_metrics"]["avg_latency"] == pytest.approx(0.025)
    assert ours["performance_metrics"]["throughput"] == pytest.approx(160)
    assert ours["performance_metrics"]["error_rate"] == 0
    for component, status in theirs["component_status"].items():
        assert ours["component_status"][component] == status
