"""Layers that come late, on one rank alone: their numbers wait for all ranks, and none is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

Said = list[dict[str, Any]]


def _monitor(window: int, **settings: Any) -> CMRPerformanceMonitor:
    given = {"log_every_n_steps": window, "on_monitor_error": "raise", **settings}
    monitor = CMRPerformanceMonitor(given, alert_config={"enable_alerts": False})
    monitor.join_ranks()
    monitor.record_capture(4, 1, 0.001)
    monitor.agree_on_layers()
    return monitor


def _probe(monitor: CMRPerformanceMonitor, layer: int | str) -> CMRProbe:
    model = nn.Module()
    model.probe = CMRProbe(layer)
    monitor.attach(model)
    return model.probe


def _gauge(rank: Rank) -> Said:
    """Rank 1's new layer has another size in each step."""
    monitor, said = _monitor(2), []
    for step in range(10):
        monitor.record_capture(4, 1, 0.001)
        if rank.rank == 1 and step >= 2:
            if step == 2:
                probe = _probe(monitor, 7)
            probe.buffer(10 * step, 100, 1000, 1)
        monitor.step()
        shown = monitor.snapshot
        said.append(
            {"step": shown.step}
            | {n: shown.value(n, layer=7) for n in ("total_entries", "eviction_count")}
        )
    monitor.flush()
    monitor.leave_ranks()
    monitor.detach()
    return said


def _last_window(rank: Rank) -> Said:
    """Rank 1 gets a layer in the last, partial window."""
    monitor = _monitor(5)
    for step in range(8):
        monitor.record_capture(4, 1, 0.001)
        if rank.rank == 1 and step == 6:
            monitor.record_capture("late", 30, 0.002)
        monitor.step()
    monitor.flush()
    shown = monitor.snapshot
    said = [
        {
            "step": shown.step,
            "windows": monitor.windows,
            "layers": shown.layers("states_stored"),
            "whole": shown.value("states_stored"),
            "ranks": shown.ranks("states_stored", over="run"),
            "calls": shown.value("capture_calls"),
        }
    ]
    monitor.leave_ranks()
    return said


def _validation(rank: Rank) -> Said:
    """Rank 1 gets a layer in a validation; training meets it only later, or never."""
    monitor = _monitor(3)
    for step in range(6):
        monitor.record_capture(4, 1, 0.001)
        monitor.step()
        if step == 3:
            monitor.enter_stage("val")
            monitor.record_capture(4, 2, 0.001)
            if rank.rank == 1:
                _probe(monitor, 7).buffer(50, 100)
                monitor.record_capture(7, 500, 0.002)
            monitor.leave_stage(step)
    monitor.flush()
    shown, val = monitor.snapshot, monitor.snapshots["val"]
    monitor.leave_ranks()
    monitor.detach()
    return [
        {
            "train": shown.layers("states_stored"),
            "val": val.layers("states_stored"),
            "val entries": val.layers("total_entries"),
            "val ranks": val.ranks("states_stored", over="run"),
            "val worlds": val.world_size,
        }
    ]


def _train_before_validation(rank: Rank) -> Said:
    """Rank 1 gets a layer in the window that a validation follows; a checkpoint between, or not."""
    said: Said = []
    for checkpoint in (False, True):
        monitor = _monitor(3)
        for step in range(8):
            monitor.record_capture(4, 1, 0.001)
            if rank.rank == 1 and step == 4:
                monitor.record_capture(7, 500, 0.002)
            monitor.step()
            if step == 5:
                if checkpoint:
                    monitor.state_dict()
                monitor.enter_stage("val")
                monitor.record_capture(4, 2, 0.001)
                monitor.leave_stage(step)
        monitor.flush()
        shown, val = monitor.snapshot, monitor.snapshots["val"]
        said.append({"train": shown.layers("states_stored"), "val": val.layers("states_stored")})
        monitor.leave_ranks()
    return said


def _checkpoint_at_the_end(rank: Rank) -> Said:
    """Rank 1 gets a layer in the last window, which a checkpoint takes before the flush."""
    monitor = _monitor(3)
    for step in range(6):
        monitor.record_capture(4, 1, 0.001)
        if rank.rank == 1 and step == 4:
            monitor.record_capture(7, 500, 0.002)
        monitor.step()
    monitor.state_dict()
    monitor.flush()
    said = [{"train": monitor.snapshot.layers("states_stored"), "step": monitor.snapshot.step}]
    monitor.leave_ranks()
    return said


SCENES: dict[str, Callable[[Rank], Said]] = {
    "gauge": _gauge,
    "last window": _last_window,
    "validation": _validation,
    "train before validation": _train_before_validation,
    "checkpoint at the end": _checkpoint_at_the_end,
}


def _run(rank: Rank) -> dict[str, Said]:
    with rank.together():
        return {name: scene(rank) for name, scene in SCENES.items()}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Said]]:
    folder: Path = tmp_path_factory.mktemp("late") / "job"
    return results(_run, 2, folder)


@pytest.mark.parametrize("scene", SCENES)
def test_every_rank_says_the_same(said: list[dict[str, Said]], scene: str) -> None:
    assert str(said[0][scene]) == str(said[1][scene])  # NaN is NaN here


def test_a_new_layers_gauges_are_the_newest(said: list[dict[str, Said]]) -> None:
    entries = {one["step"]: one["total_entries"] for one in said[0]["gauge"] if one["step"] >= 0}
    assert math.isnan(entries[1])
    assert math.isnan(entries[3])  # waits for the agreement
    assert {step: entries[step] for step in (5, 7)} == {5: 50.0, 7: 70.0}
    counts = {one["step"]: one["eviction_count"] for one in said[0]["gauge"] if one["step"] >= 5}
    assert counts == {5: 4.0, 7: 6.0}


def test_a_layer_of_the_last_window_counts(said: list[dict[str, Said]]) -> None:
    [one] = said[0]["last window"]
    assert one == {
        "step": 7,
        "windows": 2,
        "layers": {4: 18.0, "late": 30.0},
        "whole": 48.0,
        "ranks": {0: 9.0, 1: 39.0},
        "calls": 19.0,
    }


def test_a_layer_that_validation_meets_first_counts_there_alone(
    said: list[dict[str, Said]],
) -> None:
    [one] = said[0]["validation"]
    assert one["val"] == {4: 4.0, 7: 500.0}
    assert one["val entries"] == {7: 50.0}
    assert one["val ranks"] == {0: 2.0, 1: 502.0}
    assert one["val worlds"] == 2
    assert one["train"].get(4) == 14.0
    assert one["train"].get(7, 0.0) == 0.0


def test_a_layer_that_training_met_before_a_validation_counts_in_training(
    said: list[dict[str, Said]],
) -> None:
    for one in said[0]["train before validation"]:
        assert one["train"] == {4: 18.0, 7: 500.0}
        assert one["val"].get(4) == 4.0
        assert one["val"].get(7, 0.0) == 0.0


def test_a_checkpoint_before_the_end_costs_no_number(said: list[dict[str, Said]]) -> None:
    assert said[0]["checkpoint at the end"] == [{"train": {4: 14.0, 7: 500.0}, "step": 5}]
