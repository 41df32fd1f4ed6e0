"""The sentence on where the time goes, of histories made for one answer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from cmr_monitor_callbacks import RunHistory
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.bottleneck import find_bottleneck
from cmr_monitor_callbacks.reports.numbers import shown
from tests.histories import snapshot, store

PHASES = {
    "data_wait": "waiting for data",
    "avg_forward_time": "the forward pass",
    "backward_time": "the backward pass",
    "optimizer_time": "the optimizer",
    "monitor_time": "this monitor",
}
PARTS = {
    "capture": ("capture_calls", "avg_capture_time"),
    "retrieval": ("total_retrievals", "avg_retrieval_time"),
    "reconstruction": ("reconstruction_calls", "avg_reconstruction_time"),
}


def found_in(
    values: dict[object, float], counters: dict[object, float] | None = None, **info: object
) -> dict[str, object]:
    """The bottleneck of a run of ten steps; counters are of one step."""
    opened = store(None, **info)
    layers = sorted({key[1] for key in values if isinstance(key, tuple)}, key=str)
    for step in range(10):
        rising = {key: value * (step + 1) for key, value in (counters or {}).items()}
        opened.window(snapshot(step, {**values, **rising}, layers=layers))  # type: ignore[dict-item]
    found: dict[str, object] = report_of(RunHistory(opened))["bottleneck"]
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_the_phase_that_takes_most_is_named(phase: str) -> None:
    values: dict[object, float] = dict.fromkeys(PHASES, 0.02) | {"step_time": 0.3, phase: 0.2}
    wall = 0.3 + values["data_wait"]
    found = found_in(values)
    assert found["phase"] == phase and found["share"] == pytest.approx(0.2 / wall)
    word = "Most" if 0.2 / wall > 0.5 else "The largest part"
    assert str(found["sentence"]) == (
        f"{word} of a step ({shown(0.2 / wall, '1')} of {shown(wall, 's')}) is {PHASES[phase]}."
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_part_and_the_layer_that_take_most_are_named(part: str) -> None:
    values: dict[object, float] = {"step_time": 0.1}
    counters: dict[object, float] = {}
    for name, (calls, seconds) in PARTS.items():
        values |= {seconds: 0.005, (seconds, 4): 0.004, (seconds, "mid"): 0.006}
        counters[calls] = 4.0 if name == part else 2.0
    found = found_in(values, counters)
    assert found["part"] == part and found["layer"] == "mid"
    assert found["part_share"] == pytest.approx(0.2)
    text = f"Of the memory's parts {part} takes the most: 20 % of a step, 6 ms a call at layer mid"
    assert text in str(found["sentence"])


def test_a_forward_of_several_passes_counts_whole() -> None:
    values: dict[object, float] = {"step_time": 0.1, "avg_forward_time": 0.015}
    values["backward_time"] = 0.03
    found = found_in(values, {"total_forward_time": 0.06})
    assert found["phase"] == "avg_forward_time" and found["share"] == pytest.approx(0.6)


def test_calls_of_several_ranks_run_beside_each_other() -> None:
    values: dict[object, float] = {"step_time": 0.1, "avg_capture_time": 0.01}
    assert found_in(values, {"capture_calls": 8.0}, world_size=4)["part_share"] == pytest.approx(
        0.2
    )


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    means = {"step_time": 0.1}
    found = find_bottleneck(means, {}, 1, {}, stragglers={0: 0.9, 1: 1.0, 2: 1.44, 3: math.nan})
    assert found["rank"] == 2
    assert found["sentence"] == (
        "The others wait for rank 2: its own work takes 1.4 times the ranks' median."
    )
    assert find_bottleneck(means, {}, 1, {}, stragglers={0: 1.1, 1: 0.9})["rank"] is None


def test_a_report_of_several_ranks_names_the_slow_one() -> None:
    opened = store(None, world_size=3)
    behind = {"straggler_ratio": np.array([0.9, 1.5, 1.0])}
    for step in range(10):
        one = snapshot(step, {"step_time": 0.1})
        opened.window(dataclasses.replace(one, world_size=3, own_by_rank=behind))
    report = report_of(RunHistory(opened))
    assert report["ranks"]["1"] == {"straggler_ratio": 1.5}
    assert report["bottleneck"]["rank"] == 1
    assert "The others wait for rank 1" in report["bottleneck"]["sentence"]


def test_without_times_it_says_so() -> None:
    nothing = dict.fromkeys(("phase", "share", "part", "part_share", "layer", "rank"))
    expected = nothing | {"sentence": "No times were recorded."}
    assert report_of(RunHistory(store(None)))["bottleneck"] == expected
    assert found_in({"storage_efficiency": 0.5}) == expected
    assert found_in({"step_time": math.nan, "avg_forward_time": 0.1}) == expected
    assert found_in({"step_time": 0.0, "avg_forward_time": 0.0}) == expected
    # a part that was never called takes nothing of a step
    assert found_in({"step_time": 0.1, "avg_capture_time": 0.1}, {"capture_calls": 0.0}) == expected


def test_layers_without_a_time_are_not_the_slowest() -> None:
    layers = {"avg_capture_time": {1: math.nan, 2: 0.1, 3: 0.2}}
    means = {"step_time": 1.0, "avg_capture_time": 0.1}
    assert find_bottleneck(means, {"capture_calls": 5.0}, 5, layers)["layer"] == 3


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "s", "–"),
        (math.nan, "1", "–"),
        (0.0, "s", "0 s"),
        (1234.0, "s", "1,234 s"),
        (0.99999, "s", "1 s"),
        (9.9999e-4, "s", "1 ms"),
        (-0.0123, "s", "-12.3 ms"),
        (3e-7, "s", "0.3 µs"),
        (0.0005, "1", "0.05 %"),
        (9.999, "1", "1,000 %"),
        (12.34, "1", "12.3"),
        (999.6, "MiB", "1,000 MiB"),
        (45.0, "states", "45"),
        (1e6, "states", "1,000,000"),
        (1e300, "states", "1e+300"),
        (math.inf, "s", "inf s"),
        (np.float64(150.53), "samples/s", "151 samples/s"),
    ],
)
def test_numbers_as_people_read_them(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text
