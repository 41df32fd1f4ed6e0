"""What is computed of a trace: numbers by hand, of a trace with a GPU among others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRMonitorError, ConfigError
from cmr_monitor_callbacks.profiling import (
    compare_profiles,
    load_results,
    read_trace,
    save_results,
    section_name,
    section_of,
    summarise,
)
from cmr_monitor_callbacks.profiling.names import Section
from cmr_monitor_callbacks.profiling.trace import trace_of

BASE = 4_843_552_639_000.0


def span(category: str, name: str, start: float, micro: float, **arguments: Any) -> dict[str, Any]:
    """A span as Kineto writes it; thread 7, or that of a device's stream."""
    place = {"pid": 1, "tid": arguments.pop("tid", 7)}
    when = {"ts": BASE + start, "dur": micro}
    return {"ph": "X", "cat": category, "name": name, **place, **when, "args": arguments}


def memory(at: float, nbytes: int, total: int, device: int = -1) -> dict[str, Any]:
    """An allocation as Kineto writes it."""
    kind = {"Device Type": int(device >= 0), "Device Id": device}
    arguments = {"Bytes": nbytes, "Total Allocated": total, **kind}
    place = {"pid": 1, "tid": 7, "ts": BASE + at}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", **place, "args": arguments}


def on_gpu() -> dict[str, Any]:
    """100 µs: a forward, a retrieval within it, a capture after that; two kernels that overlap."""
    return {
        "deviceProperties": [{"id": 0, "name": "NVIDIA H200"}],
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "ts": BASE, "args": {}},
            span("user_annotation", "ProfilerStep#0", 0, 100),
            span("user_annotation", "cmr/forward", 10, 60),
            span("user_annotation", "cmr/retrieval/layer_4", 20, 30),
            span("user_annotation", "cmr/capture/layer_4", 80, 10),
            span("gpu_user_annotation", "cmr/forward", 30, 60),
            span("cpu_op", "aten::mm", 22, 8),
            span("cuda_runtime", "cudaLaunchKernel", 24, 2, correlation=11),
            span("cpu_op", "aten::add", 55, 5),
            span("cuda_driver", "cuLaunchKernel", 56, 2, correlation=12),
            span("cuda_runtime", "cudaMemcpyAsync", 82, 2, correlation=13),
            span("cuda_runtime", "cudaLaunchKernel", 95, 2, correlation=14),  # in no section
            span("kernel", "gemm", 30, 40, correlation=11, device=0, stream=7),
            span("kernel", "add", 60, 20, correlation=12, device=0, stream=20),
            span("gpu_memcpy", "Memcpy DtoH", 85, 5, correlation=13, device=0, stream=7),
            memory(12, 1000, 51_000, device=0),
            memory(25, 4000, 55_000, device=0),
            memory(26, -4000, 51_000, device=0),
            memory(81, 500, 500),
        ],
    }


def test_time_memory_and_the_gpu_by_section() -> None:
    found = summarise(trace_of(on_gpu()), 5, {"reason": "test"})
    rows = found["sections"]
    assert set(rows) == {"cmr/forward", "cmr/retrieval/layer_4", "cmr/capture/layer_4"}
    forward, retrieval = rows["cmr/forward"], rows["cmr/retrieval/layer_4"]
    assert forward["seconds"] == pytest.approx(60e-6)
    assert forward["self_seconds"] == pytest.approx(30e-6)
    assert forward["share"] == pytest.approx(0.6)
    # kernels belong to where they were launched, whenever they ran
    assert forward["device_seconds"] == pytest.approx(60e-6)
    assert forward["device_self_seconds"] == pytest.approx(20e-6)
    assert retrieval["device_seconds"] == pytest.approx(40e-6)
    assert rows["cmr/capture/layer_4"]["device_seconds"] == pytest.approx(5e-6)
    # 50,000 bytes were there before
    assert forward["peak_bytes"] == {"cuda:0": 5000}
    assert forward["allocated_bytes"] == {"cuda:0": 5000}
    assert retrieval["peak_bytes"] == {"cuda:0": 4000}
    assert found["memory"]["cuda:0"]["peak_bytes"] == 55_000
    assert found["memory"]["cuda:0"]["peak_growth_bytes"] == 5000
    assert found["memory"]["cpu"]["allocations"] == 1
    # 30 to 80 and 85 to 90, of 100
    [device] = found["gpu"]["devices"].values()
    assert device["name"] == "NVIDIA H200"
    assert device["busy_seconds"] == pytest.approx(55e-6)
    assert found["gpu"]["busy_share"] == pytest.approx(0.55)
    assert [row["name"] for row in found["operators"]] == ["aten::mm", "aten::add"]
    assert found["operators"][0]["device_self_seconds"] == pytest.approx(40e-6)
    bottleneck = found["bottleneck"]
    assert bottleneck["section"] == "cmr/retrieval/layer_4"
    assert bottleneck["share"] == pytest.approx(0.4)
    assert bottleneck["sentence"].startswith("The GPU is the limit (busy 55% of the time); ")
    assert found["layers"] == {
        "4": {
            "seconds": pytest.approx(40e-6),
            "self_seconds": pytest.approx(40e-6),
            "retrieval": pytest.approx(30e-6),
            "capture": pytest.approx(10e-6),
        }
    }
    json.dumps(found, allow_nan=False)


def test_a_gpu_that_waits_is_said_to() -> None:
    trace = on_gpu()
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e.get("name") != "gemm"]
    found = summarise(trace_of(trace), 5, {})
    assert found["gpu"]["busy_share"] == pytest.approx(0.25)
    assert "waits for the host (busy 25%" in found["bottleneck"]["sentence"]
    assert found["bottleneck"]["section"] == "cmr/forward"  # by the host's clock: 30 of its own


def test_a_section_within_one_of_its_name_counts_once() -> None:
    events = [
        span("user_annotation", "ProfilerStep#0", 0, 100),
        span("user_annotation", "cmr/retrieval", 0, 50),
        span("user_annotation", "cmr/retrieval", 10, 20),
        span("user_annotation", "cmr/retrieval", 60, 10),
        span("user_annotation", "cmr/retrieval", 0, 5, tid=8),  # another thread
    ]
    row = summarise(trace_of({"traceEvents": events}), 5, {})["sections"]["cmr/retrieval"]
    assert row["calls"] == 3
    assert row["seconds"] == pytest.approx(65e-6)
    assert row["self_seconds"] == pytest.approx(65e-6)
    assert row["median_seconds"] == pytest.approx(10e-6)


def test_an_empty_trace_has_all_keys() -> None:
    found = summarise(trace_of({"traceEvents": []}), 5, {})
    assert {"sections", "operators", "memory", "gpu", "bottleneck"} <= set(found)
    assert found["bottleneck"]["sentence"] == "Nothing was recorded."
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("component", "layer", "recompute"),
    [("capture", 4, False), ("forward", None, False), ("retrieval", "net.blocks.3", True)],
)
def test_a_name_is_read_back(component: str, layer: Any, recompute: bool) -> None:
    name = section_name(component, layer, recompute)
    shown = None if layer is None else str(layer)
    assert section_of(name) == Section(component, shown, recompute)


def test_what_is_no_trace_is_said_to_be_none(tmp_path: Path) -> None:
    file = tmp_path / "x.pt.trace.json"
    with pytest.raises(CMRMonitorError, match="cannot be read"):
        read_trace(file)
    file.write_text('{"traceEvents": [')
    with pytest.raises(CMRMonitorError, match="cannot be read"):
        read_trace(file)
    file.write_text("[]")
    with pytest.raises(CMRMonitorError, match="no trace"):
        read_trace(file)


# -- regression ------------------------------------------------------------------------------


def profile(**medians: tuple[float, int]) -> dict[str, Any]:
    """Results with nothing but these sections: median seconds and calls."""
    rows = {
        f"cmr/{name}": {"median_seconds": seconds, "calls": calls}
        for name, (seconds, calls) in medians.items()
    }
    return {"sections": rows}


def test_which_sections_became_slower(tmp_path: Path) -> None:
    ms = 1e-3
    base = profile(a=(ms, 9), b=(ms, 9), c=(ms, 9), few=(ms, 9), gone=(ms, 9), tiny=(1e-6, 9))
    new = profile(
        a=(1.5 * ms, 9), b=(1.1 * ms, 9), c=(0.5 * ms, 9), few=(9 * ms, 4), tiny=(3e-6, 9), d=(1, 9)
    )
    found = {change.section: change for change in compare_profiles(base, new)}
    verdicts = {name.removeprefix("cmr/"): change.verdict for name, change in found.items()}
    assert verdicts == {
        "a": "slower",
        "b": "same",
        "c": "faster",
        "few": "too few calls",
        "gone": "missing",
        "tiny": "same",
        "d": "new",
    }
    assert found["cmr/a"].ratio == pytest.approx(1.5)
    strict = {change.section: change for change in compare_profiles(base, new, threshold=1.05)}
    assert strict["cmr/b"].verdict == "slower"
    # saved and read again, from a folder as from a file
    for name, results in (("base", base), ("new", new)):
        (tmp_path / name).mkdir()
        save_results(results, tmp_path / name / "x.profile.json")
    again = compare_profiles(tmp_path / "base", tmp_path / "new" / "x.profile.json")
    assert [change.to_dict() for change in again] == [c.to_dict() for c in found.values()]
    with pytest.raises(ConfigError, match=r"threshold must be greater than 1, got 0.8"):
        compare_profiles(base, new, threshold=0.8)


def test_where_no_profile_is_it_is_said_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CMRMonitorError, match="enable_profiling"):
        load_results(tmp_path)
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(CMRMonitorError, match="holds no results of a profile"):
        load_results(tmp_path / "y.json")
