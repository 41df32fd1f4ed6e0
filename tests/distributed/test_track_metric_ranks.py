"""Two ranks that track numbers: alike or each its own, late, too many, and one that goes away."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, RunHistory
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.custom import MOST
from tests.distributed.fitting import STRICT
from tests.distributed.processes import Rank, results, start

pytestmark = pytest.mark.distributed


def _monitor(rank: Rank, **settings: Any) -> CMRPerformanceMonitor:
    model = nn.Linear(2, 2)
    model.probe = CMRProbe(4)
    return CMRPerformanceMonitor(
        {"log_every_n_steps": 2, **STRICT, **settings},
        alert_config={"rules": {}, "alert_channels": []},
        model=model,
        clock=ManualClock(100.0 + rank.rank),
    )


def _join(monitor: CMRPerformanceMonitor) -> Any:
    monitor.join_ranks()
    monitor.agree_on_layers()
    group = monitor._ranks._group
    assert group is not None
    return group


def _seen(monitor: CMRPerformanceMonitor) -> dict[str, Any]:
    return {over: monitor.snapshot.to_dict(over)["custom"] for over in ("run", "window")}


def _run(rank: Rank, folder: Path, route: str) -> dict[str, Any]:
    with rank.together():
        monitor = _monitor(rank, reduction=route)
        monitor.open_history(folder, rank.rank, rank.world)
        monitor.track_metric("both", 1.0 + rank.rank)  # known when the ranks agree
        group = _join(monitor)
        calls: list[int] = []
        seen = []
        fired: list[float] = []
        monitor.set_alert("custom/mine.1", "> 1", lambda alert: fired.append(alert.value))
        for step in range(14):
            before = group.collectives
            with monitor.track_performance():
                monitor.track_metric("both", step, timestamp=10.0 * step + rank.rank)
                if step == 5:  # each rank its own, and one of them a layer too
                    monitor.track_metric(f"mine.{rank.rank}", 5.0)
                    monitor.record_capture(7 + rank.rank, 1, 0.001)
                if step == 8 and rank.rank:
                    monitor.track_metric("mine.0", 7.0)
            monitor.settle()
            calls.append(group.collectives - before)
            seen.append(_seen(monitor))
        monitor.track_metric("end", 3.0 + rank.rank)  # no window follows that could have it
        with monitor.track_performance():
            pass
        monitor.flush()
        seen.append(_seen(monitor))
        length = monitor._ranks.exchange.payload_length  # type: ignore[union-attr]
        ranked = monitor.snapshot.value("both", rank=1)
        state = monitor.state_dict()["custom"]
        monitor.leave_ranks()
        monitor.close_history("completed")
        monitor.detach()
    shown = fired if rank.rank == 0 else [5.0]
    out = {"seen": seen, "calls": calls, "length": length, "state": state, "fired": shown}
    return {**out, "ranked": str(ranked)}


@pytest.mark.parametrize("route", ["flat", "hierarchical"])
def test_names_are_agreed_on_as_layers_are(tmp_path: Path, route: str) -> None:
    torch.set_num_threads(1)
    first, second = results(_run, 2, tmp_path, tmp_path / "run", route, limit=120.0)
    assert first == second
    seen = first["seen"]
    assert seen[1]["window"]["both"] == {
        "mean": (1 + 2 + 2 * (0 + 1)) / 6,
        "min": 0.0,
        "max": 2.0,
        "last": 2.0,  # tracked at 101 s; those of step 1 say 10 and 11
        "count": 6,
        "time": 101.0,
    }
    assert seen[3]["window"]["both"] == {
        "mean": 2.5,
        "min": 2.0,
        "max": 3.0,
        "last": 3.0,
        "count": 4,
        "time": 31.0,
    }
    # what came in the window of steps 4 and 5 is agreed on with it, and in the next
    assert set(seen[5]["window"]) == {"both"} and seen[6] == seen[5]
    assert {n: t["mean"] for n, t in seen[7]["window"].items()} == {
        "both": 6.5,
        "mine.0": 5.0,
        "mine.1": 5.0,
    }
    assert set(seen[9]["window"]) == {"both", "mine.0"}  # steps 8 and 9
    run = seen[-1]["run"]
    assert (run["mine.0"]["mean"], run["mine.0"]["count"], run["mine.1"]["count"]) == (6.0, 2, 1)
    assert run["both"]["count"] == 2 + 28 and run["both"]["mean"] == (3 + 2 * sum(range(14))) / 30
    # the last window has what no other could have
    assert seen[-1]["window"]["end"]["mean"] == 3.5
    assert {name: row[:2] for name, row in first["state"]["run"].items()} == {
        name: [float(told["count"]), told["mean"] * told["count"]] for name, told in run.items()
    }
    assert first["state"]["window"] == {} and first["fired"] == [5.0]
    assert first["ranked"] == "nan"
    if route == "flat":
        windows = [sum(first["calls"][i : i + 2]) for i in range(0, 14, 2)]
        assert windows == [1, 1, 3, 1, 1, 1, 1]
    with RunHistory(tmp_path / "run") as history:
        assert history.series("mine.0").value.tolist()[-3:-2] != []
        assert [x for x in history.series("mine.0").value.tolist() if x == x] == [5.0, 7.0]


def _many(rank: Rank) -> dict[str, Any]:
    with rank.together():
        monitor = _monitor(rank)
        group = _join(monitor)
        calls = []
        for _ in range(8):
            before = group.collectives
            with monitor.track_performance():
                for i in range(40):
                    monitor.track_metric(f"r{rank.rank}.{i}", 1.0)
            monitor.settle()
            calls.append(group.collectives - before)
        exchange = monitor._ranks.exchange
        assert exchange is not None
        found = {
            "names": exchange.names,
            "bytes": 8 * exchange.payload_length,
            "windows": [sum(calls[i : i + 2]) for i in range(0, 8, 2)],
            "counts": [t["count"] for t in _seen(monitor)["run"].values()],
            "invalid": monitor.snapshot.value("invalid_samples"),
        }
        monitor.leave_ranks()
        monitor.detach()
    return found


def test_more_names_than_there_is_room_for(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first, second = results(_many, 2, tmp_path, limit=120.0)
    assert first == second
    assert len(first["names"]) == MOST and first["bytes"] <= 32 * 1024
    # agreed on once, and not at each window again
    assert first["windows"] == [3, 1, 1, 1]
    # the first window's numbers are in the second's; 16 names have no room, which is counted with
    # the window after
    assert first["counts"] == [8] * MOST and first["invalid"] == 16 * 6


def _dies(rank: Rank) -> dict[str, Any]:
    with rank.together():
        monitor = _monitor(rank, on_monitor_error="log", reduction_timeout=5.0)
        monitor.track_metric("a", 1.0)
        _join(monitor)
        for step in range(8):
            if step == 3 and rank.rank == 1:
                os._exit(9)
            with monitor.track_performance():
                monitor.track_metric("a", 2.0)
                if step == 2:
                    monitor.track_metric("new", 5.0)
        monitor.flush()
        found = _seen(monitor)["run"]
        monitor.leave_ranks()
        monitor.detach()
    return {name: told["count"] for name, told in found.items()}


def test_a_rank_alone_goes_on_with_its_own(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first, second = start(_dies, 2, tmp_path, limit=120.0)
    assert second.code == 9
    # one window of both ranks, all others of this one alone: nothing twice, nothing lost
    assert first.result == {"a": 2 + 2 * 2 + 6, "new": 1}
