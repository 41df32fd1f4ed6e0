"""Two ranks: what the monitor says of itself is one number, the same on both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.clock import ManualClock
from tests.distributed.fitting import STRICT
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

NAMES = ("collection_rate", "storage_latency", "alert_rate", "dropped_events", "events")
RULE = {
    "metric": "states_stored",
    "condition": ">",
    "thresholds": {"critical": 5},
    "over": "run",
    "for": "0 steps",
    "warmup": False,
}


def _run(rank: Rank, folder: Path, route: str) -> dict[str, Any]:
    clock = ManualClock(1e6 + 50 * rank.rank)
    model = nn.Linear(2, 2)
    model.probe = CMRProbe(4)
    with rank.together():
        monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 2, "reduction": route, **STRICT},
            alert_config={"rules": {"full": RULE}, "alert_channels": ["log"]},
            model=model,
            clock=clock,
        )
        monitor.open_history(folder, rank.rank, rank.world)
        monitor.join_ranks()
        monitor.agree_on_layers()
        group = monitor._ranks._group
        assert group is not None
        before = group.collectives
        for step in range(8):
            with monitor.track_performance():
                for _ in range(1 + rank.rank):
                    model.probe.capture(4, 3, 2)
                clock.advance(0.5 + 0.5 * rank.rank)
            if step % 2 == 0:
                monitor.flush_history()
            if step == 3:  # what a rank lost by its own
                monitor._parts.keeper._lost += 3 + rank.rank
        monitor.flush()
        collectives = group.collectives - before
        monitor.flush_history()
        snapshot = monitor.snapshot
        found = {name: snapshot.value(name) for name in NAMES}
        found["own"] = monitor._parts.keeper.latency
        found["lost in the window"] = snapshot.value("dropped_events", over="window")
        found["windows"], found["collectives"] = monitor.windows, collectives
        monitor.leave_ranks()
        monitor.close_history("completed")
        monitor.detach()
    return found


@pytest.mark.parametrize("route", ["flat", "hierarchical"])
def test_the_ranks_numbers_are_one(tmp_path: Path, route: str) -> None:
    torch.set_num_threads(1)
    first, second = results(_run, 2, tmp_path, tmp_path / "run", route, limit=120.0)
    assert math.isnan(second.pop("own")) and 0 < first.pop("own") < 60
    assert first == second
    # a step and its captures, of 1 s a window on rank 0, 2 s on rank 1
    assert first["collection_rate"] == (2 + 2) / 1.0 + (2 + 4) / 2.0
    assert 0 < first["storage_latency"] < 60
    assert first["alert_rate"] == 0.2  # rank 0 alone tells
    assert (first["dropped_events"], first["lost in the window"]) == (7, 0)
    assert first["windows"] == 4
    if route == "flat":
        assert first["collectives"] == 4
