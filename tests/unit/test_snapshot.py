"""Reading a snapshot."""

from __future__ import annotations

import math

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, Snapshot

KEYS = {
    "metrics": {
        "capture_times",
        "reconstruction_times",
        "total_forward_time",
        "avg_capture_time",
        "avg_reconstruction_time",
        "total_captures",
        "total_reconstructions",
        "states_captured_per_layer",
        "states_stored_per_layer",
        "reconstructions_per_layer",
        "capture_efficiency",
        "storage_efficiency",
        "reconstruction_quality",
        "memory_utilization",
        "cache_hit_rate",
    },
    "buffer_stats": {
        "total_entries",
        "entries_per_layer",
        "memory_size_mb",
        "utilization_rate",
        "eviction_count",
        "eviction_rate",
    },
    "retrieval_stats": {
        "total_retrievals",
        "avg_retrieval_time",
        "cache_hits",
        "cache_hit_rate",
        "retrieval_quality",
    },
}


@pytest.fixture
def snapshot() -> Snapshot:
    """The specification's example; the last window holds one capture of layer 6 alone."""
    model = nn.Module()
    model.probes = [CMRProbe(i) for i in (6, 4, None)]
    six, four, whole = model.probes
    monitor = CMRPerformanceMonitor(alert_config={"enable_alerts": False}, model=model)
    four.capture(52, 50, 45, 0.001)
    six.capture(96, 90, 85, 0.002)
    four.reconstruction(8, 0.9, 0.003)
    six.reconstruction(0, 0.8, 0.002)
    four.buffer(500, 1000, 2**20, 20)
    six.buffer(1000, 1000, 2**20, 30)
    whole.retrieval(200, 900, 160, 0.4, 0.88)
    monitor.record_step(0.1, None, 0.05, None, None, None, 1, 8, 800)
    monitor.close_window()
    six.capture(10, 10, 5, 0.001)
    monitor.close_window()
    monitor.detach()
    return monitor.snapshot


def test_run_and_window(snapshot: Snapshot) -> None:
    assert snapshot.value("states_stored") == 135
    assert snapshot.value("states_stored", layer=6) == 90
    assert snapshot.value("storage_efficiency") == 0.90
    assert snapshot.value("storage_efficiency", over="window") == 0.5
    assert snapshot.value("states_stored", layer=4, over="window") == 0
    assert math.isnan(snapshot.value("storage_efficiency", layer=4, over="window"))
    assert snapshot.value("utilization_rate", over="window") == 0.75
    assert snapshot.value("states_stored", rank=0) == 135


def test_every_name_of_a_metric(snapshot: Snapshot) -> None:
    assert snapshot.value("total_captures") == snapshot.value("states_captured") == 150
    assert snapshot.layers("states_captured_per_layer") == {4: 50, 6: 100}
    assert list(snapshot.layers("entries_per_layer")) == [4, 6]
    assert snapshot.layers("storage_efficiency", over="window") == {6: 0.5}
    assert snapshot.row("memory_utilization").tolist() == [0.75, 1.0, 0.5]
    assert snapshot.unit("memory_utilization") == "1"
    assert snapshot.source("total_captures").startswith("explicit:")


def test_what_there_is_not(snapshot: Snapshot) -> None:
    assert math.isnan(snapshot.value("states_stored", layer=99))
    assert math.isnan(snapshot.value("selection_rate"))
    assert snapshot.value("events") == 9
    assert math.isnan(snapshot.value("events", layer=4))
    with pytest.raises(KeyError, match="'states_stord'; did you mean 'states_stored'"):
        snapshot.value("states_stord")
    with pytest.raises(ValueError, match="over must be 'run' or 'window', got 'epoch'"):
        snapshot.value("states_stored", over="epoch")  # type: ignore[arg-type]
    for rank in (1, -1):
        with pytest.raises(ValueError, match=rf"rank must be in 0\.\.0, got {rank}"):
            snapshot.value("states_stored", rank=rank)


@pytest.mark.parametrize("read", ["row", "layers"])
def test_over_is_checked_by_every_reader(snapshot: Snapshot, read: str) -> None:
    with pytest.raises(ValueError, match="over must be 'run' or 'window', got 'epoch'"):
        getattr(snapshot, read)("states_stored", over="epoch")


def test_the_specifications_dictionaries(snapshot: Snapshot) -> None:
    shown = snapshot.to_dict()
    assert {part: set(shown[part]) for part in KEYS} == KEYS
    assert shown["over"] == "run"
    metrics, buffer, retrieval = (shown[part] for part in KEYS)
    assert metrics["capture_times"] == [0.001, 0.002, 0.001]
    assert f"{metrics['avg_capture_time']:.5f}" == "0.00133"
    assert metrics["reconstruction_times"] == [0.003, 0.002]
    assert metrics["avg_reconstruction_time"] == 0.0025
    assert metrics["states_stored_per_layer"] == {4: 45, 6: 90}
    assert metrics["storage_efficiency"] == 0.90
    assert metrics["cache_hit_rate"] == 0.80
    assert metrics["total_forward_time"] == 0.05
    assert (metrics["total_captures"], metrics["total_reconstructions"]) == (150, 1)
    assert buffer["entries_per_layer"] == {4: 500, 6: 1000}
    assert (buffer["memory_size_mb"], buffer["utilization_rate"]) == (2.0, 0.75)
    assert buffer["eviction_rate"] == 50 / 135
    assert retrieval["avg_retrieval_time"] == 0.002
    assert retrieval["retrieval_quality"] == 0.88


def test_counts_are_ints(snapshot: Snapshot) -> None:
    shown = snapshot.to_dict()
    counts = [
        shown["metrics"]["total_captures"],
        shown["metrics"]["total_reconstructions"],
        *shown["metrics"]["states_captured_per_layer"].values(),
        *shown["metrics"]["reconstructions_per_layer"].values(),
        shown["buffer_stats"]["total_entries"],
        *shown["buffer_stats"]["entries_per_layer"].values(),
        shown["buffer_stats"]["eviction_count"],
        shown["retrieval_stats"]["total_retrievals"],
        shown["retrieval_stats"]["cache_hits"],
    ]
    assert {type(count) for count in counts} == {int}
    assert all(type(key) is int for key in shown["buffer_stats"]["entries_per_layer"])
    assert type(shown["metrics"]["capture_efficiency"]) is float


def test_of_the_window(snapshot: Snapshot) -> None:
    shown = snapshot.to_dict(over="window")
    assert shown["over"] == "window"
    assert shown["metrics"]["total_captures"] == 10
    assert shown["buffer_stats"]["total_entries"] == 1500
    assert "avg_reconstruction_time" not in shown["metrics"]


def test_a_snapshot_stays_as_it_was(snapshot: Snapshot) -> None:
    model = nn.Module()
    model.probe = CMRProbe(4)
    monitor = CMRPerformanceMonitor(alert_config={"enable_alerts": False}, model=model)
    model.probe.capture(2, 2, 1, 0.5)
    monitor.close_window()
    first = monitor.snapshot
    before = first.to_dict()
    model.probe.capture(8, 8, 8, 0.25)
    monitor.close_window()
    assert first.value("states_stored") == 1
    assert first.to_dict() == before
    assert monitor.snapshot.value("states_stored") == 9


def test_nothing_yet() -> None:
    empty = Snapshot.empty("val")
    assert (empty.stage, empty.step, empty.layer_ids) == ("val", -1, ())
    assert math.isnan(empty.value("states_captured"))
    assert empty.to_dict()["metrics"] == {}
    assert empty.layers("states_captured") == {}
