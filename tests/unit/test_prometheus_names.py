"""What the exporter calls the catalogue's numbers, and what stands in its text."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections import Counter
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from cmr_monitor_callbacks.catalogue import BY_NAME, METRICS, OWN_METRICS, Kind
from cmr_monitor_callbacks.config import SinksConfig, parse
from cmr_monitor_callbacks.custom import Tracked
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertState, HealthReport, Phase, Severity
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW, ROW, Packed
from cmr_monitor_callbacks.sinks import WindowReport
from cmr_monitor_callbacks.sinks.prometheus_names import series_of
from cmr_monitor_callbacks.sinks.prometheus_samples import ReportCollector
from cmr_monitor_callbacks.snapshot import Snapshot
from tests.pages import rows

ALL = (*METRICS, *OWN_METRICS)
LAYERS = (4, "4", "encoder/block 2")
BY_HAND = {
    "states_stored": ("cmr_capture_states_stored_total", "counter"),
    "capture_efficiency": ("cmr_capture_capture_efficiency_ratio", "gauge"),
    "avg_capture_time": ("cmr_capture_avg_capture_time_seconds", "gauge"),
    "capture_time_p50": ("cmr_capture_capture_time_seconds", "summary"),
    "total_reconstructions": ("cmr_reconstruction_reconstructions_total", "counter"),
    "reconstruction_quality": ("cmr_reconstruction_reconstruction_quality", "gauge"),
    "total_entries": ("cmr_buffer_total_entries", "gauge"),
    "memory_size_mb": ("cmr_buffer_memory_size_bytes", "gauge"),
    "utilization_rate": ("cmr_buffer_utilization_ratio", "gauge"),
    "eviction_count": ("cmr_buffer_eviction_total", "counter"),
    "eviction_rate": ("cmr_buffer_eviction_ratio", "gauge"),
    "cache_hit_rate": ("cmr_retrieval_cache_hit_ratio", "gauge"),
    "output_entropy": ("cmr_model_output_entropy_nats", "gauge"),
    "padding_share": ("cmr_model_padding_ratio", "gauge"),
    "step_time": ("cmr_timing_avg_step_time_seconds", "gauge"),
    "step_time_p99": ("cmr_timing_step_time_seconds", "summary"),
    "total_forward_time": ("cmr_timing_forward_time_seconds_total", "counter"),
    "throughput": ("cmr_timing_throughput_samples_per_second", "gauge"),
    "tokens_per_second": ("cmr_timing_tokens_per_second", "gauge"),
    "error_count": ("cmr_errors_error_total", "counter"),
    "cpu_percent": ("cmr_resources_cpu_ratio", "gauge"),
    "process_rss_mb_max": ("cmr_resources_process_rss_max_bytes", "gauge"),
    "gpu_utilization": ("cmr_resources_gpu_utilization_ratio", "gauge"),
    "gpu_temperature": ("cmr_resources_gpu_temperature_celsius", "gauge"),
    "gpu_power": ("cmr_resources_gpu_power_watts", "gauge"),
    "gpu_clock": ("cmr_resources_gpu_clock_hertz", "gauge"),
    "gpu_throttled_share": ("cmr_resources_gpu_throttled_ratio", "gauge"),
    "straggler_ratio": ("cmr_timing_straggler_ratio", "gauge"),
    "score": ("cmr_health_system_score", "gauge"),
    "buffer": ("cmr_health_score", "gauge"),
    "buffer_status": ("cmr_health_status", "gauge"),
    "alerts_firing": ("cmr_health_alerts_firing", "gauge"),
    "events": ("cmr_monitor_events_total", "counter"),
    "overhead_seconds": ("cmr_monitor_overhead_seconds_total", "counter"),
    "overhead_fraction": ("cmr_monitor_overhead_ratio", "gauge"),
    "sample_every": ("cmr_monitor_sample_every", "gauge"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_names_and_types(name: str) -> None:
    series = series_of(BY_NAME[name])
    assert (series.name(), series.type) == BY_HAND[name]


def test_no_two_metrics_are_one_series() -> None:
    found = Counter(
        (series_of(info).name(part), *sorted(series_of(info).labels.items()))
        for info in ALL
        for part in ("", "layer", "rank")
    )
    assert set(found.values()) == {1}


def test_a_name_has_one_type_and_one_help() -> None:
    known: dict[str, tuple[str, str]] = {}
    for info in ALL:
        series = series_of(info)
        assert known.setdefault(series.name(), (series.type, series.help)) == (
            series.type,
            series.help,
        )
        assert series.help


def test_every_name_is_as_prometheus_wants_it() -> None:
    for info in ALL:
        series = series_of(info)
        name = series.name()
        assert re.fullmatch(r"cmr(_[a-z0-9]+)+", name)
        assert name.startswith(f"cmr_{info.component}_")
        assert name.endswith("_total") == (series.type == "counter")
        assert not name.endswith(("_count", "_sum", "_bucket", "_info", "_created", "_mb"))
        assert (series.type == "counter") == (info.kind is Kind.COUNTER or info.cumulative)
        assert (series.type == "summary") == (info.kind is Kind.QUANTILE)
        if info.unit == "s":
            assert "_seconds" in name


def by_rank() -> Packed:
    """Three ranks, of which rank 2 steps five times as slowly."""
    packed = Packed.empty(4)
    packed.values[ROW["step_seconds"], 1:] = (1.0, 1.0, 5.0)
    packed.samples[ROW["step_seconds"], 1:] = 10
    return packed


def full(stage: str = "train", **more: Any) -> WindowReport:
    """A report in which every number of the catalogue has data; no two are alike."""
    width = 1 + len(LAYERS)
    counters = 1.0 + np.arange(len(COUNTERS) * width, dtype=float).reshape(-1, width)
    window = 0.5 + np.arange(len(METRICS) * width, dtype=float).reshape(-1, width)
    empty = Packed.empty(width)
    train = stage == "train"
    own = {info.name: float(i) for i, info in enumerate(OWN_METRICS)} if train else {}
    given = {"statistics": empty, "counters": counters, "window": window, "own": own}
    if train:
        given["by_rank"] = by_rank()
    snapshot = Snapshot(stage, 9, 1.7e9, 3, LAYERS, **{**given, **more})
    return WindowReport(snapshot, health() if train else HealthReport(), (), (), ())


def health() -> HealthReport:
    def firing(rule: str, **more: Any) -> AlertState:
        return AlertState(rule, phase=Phase.FIRING, severity=Severity.WARNING, **more)

    return HealthReport(
        firing=(
            firing("slow", metric="step_time", rank=2),
            firing("refused", metric="storage_efficiency", layer=4),
            firing("refused", metric="storage_efficiency", layer="4"),
            firing("nonfinite", metric="avg_capture_time", layer=4, names_metric=True),
            firing("nonfinite", metric="tokens", layer=4, names_metric=True),
        )
    )


def text_of(*reports: WindowReport, **settings: Any) -> str:
    collector = ReportCollector(**{"layer_metrics": ["*"], **settings})
    for report in reports:
        collector.newest[report.snapshot.stage] = report
    registry = CollectorRegistry()
    registry.register(collector)
    # its parser is strict: names, types, labels that occur twice, groups that are torn apart
    assert list(read_openmetrics(openmetrics(registry).decode()))
    return generate_latest(registry).decode()


Labels = dict[str, str]


def samples(text: str) -> dict[str, list[tuple[Labels, float]]]:
    """Labels and values by name; fails where a series occurs twice or is NaN."""
    out: dict[str, list[tuple[Labels, float]]] = {}
    for family in read_text(text):
        for sample in family.samples:
            known = out.setdefault(sample.name, [])
            assert sample.labels not in [labels for labels, _ in known], sample
            assert not math.isnan(sample.value), sample
            known.append((sample.labels, sample.value))
    return out


def test_every_metric_has_its_number() -> None:
    report = full()
    found = samples(text_of(report))
    snapshot = report.snapshot
    for info in METRICS:
        series = series_of(info)
        at = (
            snapshot.counters[COUNTERS.index(info.name)]
            if info.kind is Kind.COUNTER
            else snapshot.window[METRIC_ROW[info.name]]
        )
        scale = 2**20 if info.name == "memory_size_mb" else 1
        labels = {"stage": "train", **series.labels}
        assert (labels, at[0] * scale) in found[series.name()], info.name
        if info.kind is Kind.QUANTILE:  # there is no histogram for each layer
            assert series.name("layer") not in found
            continue
        for i, layer in enumerate(("04", "4", "encoder_block_2")):
            expected = ({**labels, "layer": layer}, at[i + 1] * scale)
            assert expected in found[series.name("layer")], info.name
    for info in OWN_METRICS:
        series = series_of(info)
        stage = {"stage": "train"} if info.component in ("model", "timing") else {}
        value = snapshot.own[info.name] * {"MiB": 2.0**20, "%": 0.01, "MHz": 1e6}.get(info.unit, 1)
        assert ({**stage, **series.labels}, value) in found[series.name()]


def test_what_no_row_of_the_catalogue_says() -> None:
    found = samples(text_of(full(), full("val"), world_size=3))
    [(info, one)] = found["cmr_info"]
    assert (set(info), info["world_size"], one) == ({"version", "world_size"}, "3", 1.0)
    stages = [{"stage": "train"}, {"stage": "val"}]
    assert found["cmr_last_window_step"] == [(stage, 9.0) for stage in stages]
    assert found["cmr_last_window_timestamp_seconds"] == [(stage, 1.7e9) for stage in stages]
    slow = {"rank": "2", "stage": "train"}
    assert found["cmr_timing_rank_avg_step_time_seconds"] == [(slow, 0.5)]
    warning = {"severity": "warning"}
    assert found["cmr_alert_firing"] == [
        ({"alert": "slow", "rank": "2", **warning}, 1.0),
        ({"alert": "refused", "layer": "04", **warning}, 1.0),
        ({"alert": "refused", "layer": "4", **warning}, 1.0),
        ({"alert": "nonfinite", "layer": "04", "metric": "avg_capture_time", **warning}, 1.0),
        ({"alert": "nonfinite", "layer": "04", "metric": "tokens", **warning}, 1.0),
    ]
    # the catalogue's names and these are different ones
    others = {name for name in found if not name.startswith(("cmr_alert", "cmr_info", "cmr_last"))}
    parts = ("", "layer", "rank")
    assert others <= {series_of(info).name(part) for info in ALL for part in parts}


def test_no_data_is_no_sample() -> None:
    nothing = np.full((len(METRICS), 4), math.nan)
    report = full(counters=nothing[: len(COUNTERS)], window=nothing, own={"score": 100.0})
    assert set(samples(text_of(report))) == {
        "cmr_info",
        "cmr_last_window_step",
        "cmr_last_window_timestamp_seconds",
        "cmr_health_system_score",
        "cmr_timing_rank_avg_step_time_seconds",
        "cmr_alert_firing",
    }
    assert set(samples(text_of())) == {"cmr_info"}


def test_a_users_own_numbers_are_one_family() -> None:
    tracked = {"grad_norm": Tracked.of(2.5, 1.0), "lr.0": Tracked.of(0.1, 1.0)}
    report = full(custom=tracked, custom_run=tracked)
    expected = [({"name": "grad_norm"}, 2.5), ({"name": "lr.0"}, 0.1)]
    assert samples(text_of(report))["cmr_custom"] == expected
    only = samples(text_of(report, whole_metrics=["custom/lr*"]))["cmr_custom"]
    assert only == expected[1:]
    assert "cmr_custom" not in samples(text_of(report, whole_metrics=["score"]))


def test_ones_own_labels_are_on_every_series() -> None:
    text = text_of(full(), labels={"run": 'night "2"\n'})
    for series in samples(text).values():
        assert all(labels["run"] == 'night "2"\n' for labels, _ in series)


def test_globs_choose_what_is_given() -> None:
    found = samples(text_of(full(), layer_metrics=["tokens"], whole_metrics=["score", "*_p95"]))
    assert {name for name in found if "_layer_" in name} == {"cmr_model_layer_tokens_total"}
    assert {labels["quantile"] for labels, _ in found["cmr_timing_step_time_seconds"]} == {"0.95"}
    assert "cmr_health_system_score" in found
    assert "cmr_capture_states_stored_total" not in found
    by_default = samples(text_of(full(), layer_metrics=None))
    assert len([name for name in by_default if "_layer_" in name]) == 8


def test_a_scrape_may_name_what_it_wants() -> None:
    collector = ReportCollector()
    collector.newest["train"] = full()
    registry = CollectorRegistry()
    registry.register(collector)
    names = ["cmr_capture_states_stored_total", "cmr_timing_rank_avg_step_time_seconds"]
    text = generate_latest(registry.restricted_registry(names)).decode()
    assert list(samples(text)) == names


def test_promtool_finds_nothing_to_improve() -> None:
    promtool = shutil.which("promtool")
    if promtool is None and os.environ.get("CI"):
        pytest.fail("promtool is missing; on Debian it is in the package prometheus")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=text_of(full(), full("val")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_table_of_the_manual_is_that_of_the_catalogue() -> None:
    expected: dict[str, list[str]] = {}
    for info in ALL:
        series = series_of(info)
        shown = "".join(
            f'{{{label}="{value}"}}'
            for label, value in series.labels.items()
            if label == "component"
        )
        expected.setdefault(f"`{series.name()}{shown}`", []).append(f"`{info.name}`")
    table = rows("docs/prometheus.md", "Every number")
    assert table == [[", ".join(names), name] for name, names in expected.items()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": -1}, "sinks.prometheus.port must be at least 0, got -1"),
        ({"port": 65536}, "sinks.prometheus.port must be at most 65535, got 65536"),
        ({"port": "web"}, "sinks.prometheus.port must be a whole number, got 'web'"),
        ({"prot": 1}, "sinks.prometheus.prot is not a setting; did you mean 'port'?"),
        ({"address": ""}, "sinks.prometheus.address: must be an IP address or the name of a host"),
        ({"address": "http://here"}, "such as 127.0.0.1, got 'http://here'"),
        ({"labels": {"run": 3}}, "sinks.prometheus.labels.run must be a string, got 3"),
        ({"labels": {"a-b": "c"}}, "sinks.prometheus.labels: 'a-b' is no name of a label: allowed"),
        ({"labels": {"__a": "c"}}, "sinks.prometheus.labels: '__a' is no name of a label"),
        ({"labels": {"rank": "c"}}, "sinks.prometheus.labels: 'rank' is a label of the exporter's"),
        (True, "sinks.prometheus must be a mapping, got True"),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(SinksConfig, {"prometheus": given}, "sinks")
    assert said in str(error.value)
