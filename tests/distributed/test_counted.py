"""How often the ranks talk, and how much they say: counted, not timed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

WINDOW, STEPS = 10, 60
TALK = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "irecv",
    "isend",
    "monitored_barrier",
    "new_group",
    "recv",
    "reduce",
    "reduce_scatter",
    "scatter",
    "send",
)


class _Counts:
    """Counts calls of torch.distributed's functions, and the bytes given to all-gathers."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.threads: set[str] = set()
        self.most_bytes = 0
        for name in TALK:
            for module in (dist, dist.distributed_c10d):
                setattr(module, name, self._counting(name, getattr(module, name)))

    def _counting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def counting(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name != "new_group":
                self.threads.add(threading.current_thread().name)
            if name == "all_gather":
                self.most_bytes = max(self.most_bytes, args[1].numel() * args[1].element_size())
            return call(*args, **kwargs)

        return counting


def _monitor(rank: Rank, layers: int) -> CMRPerformanceMonitor:
    settings = {"log_every_n_steps": WINDOW, "on_monitor_error": "raise"}
    monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
    monitor.join_ranks()
    for layer in range(layers):
        monitor.record_capture(layer, 1, 0.001)
    monitor.agree_on_layers()
    return monitor


def _wait(monitor: CMRPerformanceMonitor) -> None:
    """Until the thread that talks to the others has done what it was given."""
    assert monitor._ranks._group is not None
    monitor._ranks._group.submit(lambda: None).take()


def _run(rank: Rank) -> dict[str, Any]:
    with rank.together():
        counts = _Counts()
        said: dict[str, Any] = {}
        for layers in (1, 12):
            monitor = _monitor(rank, layers)
            group = monitor._ranks._group
            assert group is not None
            steps, own = [], []
            for _ in range(STEPS):
                before, launched = sum(counts.calls.values()), group.collectives
                for layer in range(layers):
                    monitor.record_capture(layer, 1, 0.001)
                monitor.step()
                _wait(monitor)
                steps.append(sum(counts.calls.values()) - before)
                own.append(group.collectives - launched)
            said[f"{layers} layers"] = {"steps": steps, "own": own, "bytes": counts.most_bytes}
            calls = sum(counts.calls.values())
            monitor.state_dict()
            monitor.flush()
            monitor.leave_ranks()
            said[f"{layers} layers"]["end"] = sum(counts.calls.values()) - calls
        said["new layer"] = _new_layer(rank, counts)
        said["validation"] = _validation(rank, counts)
        said["names"] = dict(counts.calls)
        said["threads"] = counts.threads
    return said


def _new_layer(rank: Rank, counts: _Counts) -> list[int]:
    """Both ranks get three layers each, in the third window; calls of torch.distributed by step."""
    monitor, steps = _monitor(rank, 3), []
    for step in range(STEPS):
        before = sum(counts.calls.values())
        if step == 25:
            for i in range(3):
                monitor.record_capture(100 + 10 * rank.rank + i, 1, 0.001)
        monitor.record_capture(0, 1, 0.001)
        monitor.step()
        _wait(monitor)
        steps.append(sum(counts.calls.values()) - before)
    monitor.leave_ranks()
    return steps


def _validation(rank: Rank, counts: _Counts) -> list[int]:
    """Calls for a validation where nothing is under way, and for a sanity check."""
    monitor, found = _monitor(rank, 3), []
    for stage in ("val", "sanity"):
        before = sum(counts.calls.values())
        monitor.enter_stage(stage)
        monitor.record_capture(0, 1, 0.001)
        monitor.leave_stage(-1)
        found.append(sum(counts.calls.values()) - before)
    monitor.leave_ranks()
    return found


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("counted") / "job"
    return results(_run, 2, folder)


@pytest.mark.parametrize("layers", [1, 12])
def test_one_collective_a_window_and_none_between(said: list[dict[str, Any]], layers: int) -> None:
    expected = [int((step + 1) % WINDOW == 0) for step in range(STEPS)]
    for one in said:
        assert one[f"{layers} layers"]["steps"] == expected
        assert one[f"{layers} layers"]["own"] == expected


def test_a_checkpoint_and_the_end_of_whole_windows_cost_none(said: list[dict[str, Any]]) -> None:
    assert [one["12 layers"]["end"] for one in said] == [0, 0]


def test_twelve_layers_fit_in_32_kib(said: list[dict[str, Any]]) -> None:
    assert 0 < said[0]["12 layers"]["bytes"] <= 32 * 1024


def test_new_layers_cost_two_more_once(said: list[dict[str, Any]]) -> None:
    for one in said:
        steps = one["new layer"]
        windows = [sum(steps[i : i + WINDOW]) for i in range(0, STEPS, WINDOW)]
        assert windows == [1, 1, 1, 3, 1, 1]
        assert sum(bool(calls) for calls in steps) == len(windows) + 1


def test_a_validation_costs_one_and_a_sanity_check_none(said: list[dict[str, Any]]) -> None:
    assert [one["validation"] for one in said] == [[1, 0], [1, 0]]


def test_nothing_but_all_gathers_and_one_group_each(said: list[dict[str, Any]]) -> None:
    for one in said:
        assert set(one["names"]) == {"all_gather", "new_group"}
        assert one["names"]["new_group"] == 4


def test_the_training_thread_calls_no_collective(said: list[dict[str, Any]]) -> None:
    for one in said:
        assert one["threads"]
        assert all(name.startswith("cmr-monitor") for name in one["threads"])
