"""One rank fails the others: nobody hangs, everybody goes on, and it is said once."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
STEPS, WINDOW, TIMEOUT = 60, 10, 2.0


def watched(layer: Any = 4, **settings: Any) -> tuple[nn.Module, CMRPerformanceMonitor]:
    model = nn.Module()
    model.probe = CMRProbe(layer)
    config = {"log_every_n_steps": WINDOW, "reduction_timeout": TIMEOUT, **settings}
    return model, CMRPerformanceMonitor(config)


def start(model: nn.Module, monitor: CMRPerformanceMonitor) -> None:
    monitor.join_ranks()
    monitor.attach(model)
    monitor.agree_on_layers()


def one_step(model: nn.Module, monitor: CMRPerformanceMonitor, rank: int) -> None:
    model.probe.capture(4, 3, 1 + rank, 0.001)
    monitor.record_step(0.01, 0.001, 0.005, 0.004, 0.001, 0.0001, 1, 2, 8)
    monitor.step()


def told(monitor: CMRPerformanceMonitor, **more: Any) -> dict[str, Any]:
    snapshot = monitor.snapshot
    return {
        "stored": snapshot.value("states_stored"),
        "step": snapshot.step,
        "world": snapshot.world_size,
        "failures": monitor.failures,
        "shown": snapshot.value("failures"),
        **more,
    }


def train(rank: int, size: int, fault: str) -> dict[str, Any]:
    model, monitor = watched(log_every_n_steps=11 if fault == "window" and rank == 1 else WINDOW)
    start(model, monitor)
    decided: list[tuple[str, str]] = []
    monitor.on_decision = lambda kind, reason: decided.append((kind, reason))
    for step in range(STEPS):
        if rank == 1 and step == 25:
            if fault == "late":
                time.sleep(0.4 * TIMEOUT)
            elif fault == "too late":
                time.sleep(2.5 * TIMEOUT)
            elif fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault == "hangs":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fault == "raises":
                monitor.leave_ranks()
                raise RuntimeError("on purpose")
            elif fault == "early":
                break
        if rank == 1 and step == 29 and fault == "skips":
            continue
        if rank == 0 and step == 45:
            monitor.request_stop("it is enough")
        one_step(model, monitor, rank)
    monitor.flush()
    found = told(monitor, decided=decided)
    monitor.leave_ranks()
    return found


def both(fault: str, folder: Path, gone: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return run_ranks(partial(train, fault=fault), 2, folder, gone=gone)


def check_survivor(found: dict[str, Any], rank: int) -> None:
    """It has the numbers of both ranks up to the fault, and its own from there on."""
    assert found["world"] == 1
    assert found["failures"] == found["shown"] == 1
    assert found["decided"] == []
    said = [text for text in found["messages"] if "the monitor failed" in text]
    assert len(said) == 1, found["messages"]
    assert found["threads"] == []
    assert found["seconds"] < 6 * TIMEOUT
    assert found["step"] == STEPS - 1
    # 20 steps of both, 40 of its own
    assert found["stored"] == 20 * (1 + 2) + 40 * (1 + rank)


def test_without_a_fault_both_hold_the_same(tmp_path: Path) -> None:
    for found in both("", tmp_path):
        assert found["world"] == 2
        assert found["failures"] == 0
        assert found["stored"] == STEPS * (1 + 2)
        assert found["decided"] == [["stop", "it is enough"]]
        assert found["messages"] == found["threads"] == []


def test_a_rank_may_be_late(tmp_path: Path) -> None:
    for found in both("late", tmp_path):
        assert (found["world"], found["failures"]) == (2, 0)
        assert found["stored"] == STEPS * (1 + 2)


@pytest.mark.parametrize("fault", ["killed", "hangs"])
def test_a_rank_that_is_gone(tmp_path: Path, fault: str) -> None:
    first, _ = both(fault, tmp_path, gone=(1,))
    check_survivor(first, 0)
    assert any("cannot be asked" in text for text in first["messages"])


def test_a_rank_that_is_too_late_loses_the_others_as_they_lose_it(tmp_path: Path) -> None:
    first, second = both("too late", tmp_path)
    check_survivor(first, 0)
    check_survivor(second, 1)


def test_a_rank_that_raises_lets_go_at_once(tmp_path: Path) -> None:
    first, second = both("raises", tmp_path)
    check_survivor(first, 0)
    assert "on purpose" in second["raised"]
    assert second["threads"] == []
    assert second["seconds"] < 2 * TIMEOUT
    assert any("are not in the totals" in text for text in second["messages"])


def test_a_rank_that_ends_early(tmp_path: Path) -> None:
    first, second = both("early", tmp_path)
    check_survivor(first, 0)
    assert second["threads"] == []
    assert second["seconds"] < 6 * TIMEOUT


def test_a_rank_that_skips_a_step_is_found_out(tmp_path: Path) -> None:
    for rank, found in enumerate(both("skips", tmp_path)):
        assert (found["world"], found["failures"]) == (1, 1)
        assert found["threads"] == []
        assert any("is at window" in text for text in found["messages"]), rank


def test_a_rank_with_other_windows_is_found_out(tmp_path: Path) -> None:
    for found in both("window", tmp_path):
        assert (found["world"], found["failures"]) == (1, 1)
        assert found["threads"] == []


def _no_monitor(rank: int, size: int) -> dict[str, Any]:
    if rank == 1:
        dist.barrier()
        return {}
    model, monitor = watched()
    start(model, monitor)
    for _ in range(STEPS):
        one_step(model, monitor, rank)
    monitor.flush()
    found = told(monitor)
    monitor.leave_ranks()
    dist.barrier()
    return found


def test_a_rank_without_a_monitor(tmp_path: Path) -> None:
    first, _ = run_ranks(_no_monitor, 2, tmp_path)
    assert (first["world"], first["failures"], first["stored"]) == (1, 1, STEPS)
    assert any("rank 1 has no monitor" in text for text in first["messages"])
    assert first["threads"] == []
    assert first["seconds"] < 4 * TIMEOUT


def _alike(rank: int, size: int) -> dict[str, Any]:
    model, monitor = watched(layer=4 if rank == 0 else "04")
    start(model, monitor)
    for _ in range(STEPS):
        one_step(model, monitor, rank)
    monitor.flush()
    found = told(monitor)
    monitor.leave_ranks()
    return found


def test_layers_that_would_look_alike(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(_alike, 2, tmp_path)):
        assert (found["world"], found["failures"]) == (1, 1)
        assert found["stored"] == STEPS * (1 + rank)
        assert any("layer_04" in text for text in found["messages"])
