"""The table of metrics: names, owners, and how many scalars it makes."""

from __future__ import annotations

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.catalogue import (
    BY_NAME,
    METRICS,
    RECORDS,
    STATISTICS,
    TIMERS,
    Kind,
    canonical,
    known_names,
    statistics_of,
)
from cmr_monitor_callbacks.metrics import CLASSES
from cmr_monitor_callbacks.sinks import TagTable

# METRICS.md by hand.
TABLE = {
    "capture": """states_considered states_attempted states_captured states_stored states_rejected
        capture_calls capture_efficiency storage_efficiency selection_rate avg_capture_time
        capture_time_p50 capture_time_p95 capture_time_p99""",
    "reconstruction": """reconstruction_calls total_reconstructions memories_used
        reconstruction_quality reconstruction_similarity avg_reconstruction_time
        reconstruction_time_p50
        reconstruction_time_p95 reconstruction_time_p99""",
    "buffer": """total_entries capacity utilization_rate memory_size_mb eviction_count
        states_loaded states_cleared states_overwritten states_merged clear_count
        eviction_rate""",
    "retrieval": """total_retrievals entries_retrieved cache_hits cache_hit_rate
        retrieval_hits retrieval_hit_rate
        avg_retrieval_time retrieval_time_p50 retrieval_time_p95 retrieval_time_p99
        retrieval_quality retrieval_similarity""",
    "model": """batch_size tokens sequence_length padding_share output_nonfinite_share
        output_entropy""",
    "optimization": "threshold_adjustments batch_optimizations prefetch_hits",
    "timing": """step_time data_wait avg_forward_time backward_time optimizer_time monitor_time
        total_forward_time avg_latency throughput tokens_per_second""",
    "errors": "error_count error_rate nonfinite_count",
    "health": "score status alerts_firing alerts_pending",
    "monitor": """overhead_seconds overhead_fraction events invalid_samples failures
        processing_time collection_rate storage_latency alert_rate dropped_events""",
}
# What no probe call gives: a monitor that watches by itself sees it.
SEEN = {s.name for s in STATISTICS if s.component not in RECORDS}
# Names of METRICS.md that come later: not in the catalogue yet.
EXTRA = {"step_time_p50", "step_time_p95", "step_time_p99", "turnover", "data_wait_share"}
BRACKETS = {
    "total_captures": "states_captured",
    "states_captured_per_layer": "states_captured",
    "states_stored_per_layer": "states_stored",
    "reconstructions_per_layer": "total_reconstructions",
    "entries_per_layer": "total_entries",
    "memory_utilization": "utilization_rate",
}
UNITS = {
    "memory_size_mb": "MiB",
    "avg_capture_time": "s",
    "step_time": "s",
    "throughput": "samples/s",
    "tokens_per_second": "tokens/s",
    "capture_efficiency": "1",
    "utilization_rate": "1",
}
PER_LAYER = {
    "states_captured",
    "states_stored",
    "storage_efficiency",
    "total_entries",
    "utilization_rate",
    "eviction_count",
    "total_reconstructions",
    "avg_reconstruction_time",
}


def test_components() -> None:
    expected = {name: component for component, names in TABLE.items() for name in names.split()}
    got = {m.name: m.component for m in METRICS if m.name not in EXTRA}
    assert got == {name: c for name, c in expected.items() if c not in ("health", "monitor")}
    assert {n: BY_NAME[n].component for n in expected} == expected
    assert {BY_NAME[name].component for name in EXTRA} == {"buffer", "timing"}


def test_names_are_told_apart() -> None:
    names = list(known_names())
    assert len(set(names)) == len(names)


def test_names_in_brackets() -> None:
    assert {name: canonical(name) for name in BRACKETS} == BRACKETS
    with pytest.raises(KeyError, match="'capture_eficiency'; did you mean 'capture_efficiency'"):
        canonical("capture_eficiency")


def test_units_and_tags() -> None:
    assert {name: BY_NAME[name].unit for name in UNITS} == UNITS
    assert BY_NAME["storage_efficiency"].tag == "cmr_capture/storage_efficiency"
    assert {m.name for m in METRICS if m.layer_tag} == PER_LAYER
    ratios = [m for m in METRICS if m.kind is Kind.RATIO and not m.unit.endswith("/s")]
    assert {m.unit for m in ratios} == {"1"}


def test_every_statistic_has_one_owner() -> None:
    owned = [name for cls in CLASSES for name in statistics_of(cls.component)]
    assert sorted([*owned, *SEEN]) == sorted(s.name for s in STATISTICS)
    assert len({cls.component for cls in CLASSES}) == len(CLASSES) == 7
    assert {owner for owner, _ in TIMERS} <= {cls.component for cls in CLASSES}


def test_every_metric_reads_what_is_stored() -> None:
    stored = {s.name for s in STATISTICS} | {name for _, name in TIMERS}
    for metric in METRICS:
        read = {*metric.numerator.split("-"), metric.denominator.lstrip("#")} - {""}
        assert read
        assert read <= stored, metric.name


def test_at_most_150_scalars_for_twelve_layers() -> None:
    model = nn.Module()
    model.probes = [CMRProbe(i) for i in range(12)]
    monitor = CMRPerformanceMonitor(alert_config={"enable_alerts": False}, model=model)
    for probe in model.probes:
        probe.capture(10, 9, 8, 0.1, considered=20)
        probe.reconstruction(3, 0.5, 0.1)
        probe.buffer(5, 10, 100, 1, cleared=1, loaded=1)
        probe.retrieval(2, 2, 1, 0.1, 0.5)
        probe.error(ValueError("x"))
    monitor.record_step(1.0, 0.1, 0.5, 0.3, 0.1, 0.01, 1, 8, 800)
    monitor.close_window()
    tags, values, whole = TagTable("train", range(12)).scalars(monitor.snapshot)
    present = {tag.split("/")[1] for tag in tags}
    assert present >= {m.name for m in METRICS if m.whole_tag and m.numerator not in SEEN}
    assert len(tags) == len(values) == len(set(tags))
    assert len(tags) - whole == 12 * len(PER_LAYER)
    assert len(tags) <= 150
    layered = [tag for tag in tags if tag.endswith("/layer_03")]
    assert {tag.split("/")[1] for tag in layered} == PER_LAYER
    monitor.detach()
