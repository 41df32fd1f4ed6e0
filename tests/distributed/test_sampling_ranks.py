"""Calls timed in every N-th step on two ranks: the same steps, exact counts, the right means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.clock import ManualClock
from tests.distributed.processes import Rank, results
from tests.memory_models.buffers import SingleBuffer

pytestmark = pytest.mark.distributed

STEPS, WINDOW = 60, 6
QUANTUM = 2.0**-10
QUIET = {"enable_alerts": False}


class Slow(SingleBuffer):
    """A store takes as long as it is told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(8, 8)
        self.clock, self.seconds = clock, 0.0

    def store_state(self, hidden_state: Tensor, relevance: float = 1.0, key: int = -1) -> bool:
        self.clock.advance(self.seconds)
        return super().store_state(hidden_state, relevance, key)


def took(rank: int, step: int) -> float:
    """Seconds that a store of a rank takes in a step."""
    return (1 + (7 * step + 3 * rank) % 11) * QUANTUM


def share(rank: int, step: int) -> float:
    """Of the time that the monitor takes; over the budget on rank 1 alone, and in the mean."""
    if step < 24:
        return 0.05 if rank else 0.001
    return 0.001


def _play(rank: Rank, settings: dict[str, Any]) -> dict[str, Any]:
    clock = ManualClock()
    model = nn.Module()
    model.memory = Slow(clock)
    config = {"log_every_n_steps": WINDOW, "on_monitor_error": "raise", **settings}
    monitor = CMRPerformanceMonitor(config, alert_config=QUIET, model=model, clock=clock)
    monitor.join_ranks()
    monitor.agree_on_layers()
    timed, chosen = [], []
    for step in range(STEPS):
        model.memory.seconds = took(rank.rank, step)
        monitor.refresh()
        chosen.append(monitor.overhead()["sample_every"])
        before = monitor._listening.automatic._report.timed[0]
        timed += [step] if before else []
        for _ in range(1 + rank.rank):
            model.memory.store_state(torch.ones(2), key=step)
        monitor.record_step(1.0, 0.0, 0.5, 0.25, 0.125, share(rank.rank, step), 1)
        monitor.step()
    monitor.flush()
    shown = monitor.snapshot
    monitor.leave_ranks()
    said = {
        "timed": timed,
        "chosen": chosen,
        "world": shown.world_size,
        "mean": shown.value("avg_capture_time"),
        "calls": shown.value("capture_calls"),
        "stored": shown.value("states_stored"),
        "source": shown.source("avg_capture_time"),
        "hooks": monitor.overhead()["seconds"]["hooks"],
        "marks": [],
    }
    if rank.rank == 0:
        with monitor.history as history:
            said["marks"] = [mark["step"] for mark in history.marks()]
    monitor.detach()
    return said


def _run(rank: Rank) -> dict[str, Any]:
    with rank.together():
        return {
            "1": _play(rank, {}),
            "3": _play(rank, {"sample_every": 3}),
            "10": _play(rank, {"sample_every": 10}),
            "adaptive": _play(rank, {"adaptive": True}),
        }


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("sampling") / "job"
    return results(_run, 2, folder)


def mean(timed: list[int]) -> float:
    """Of all ranks' stores in these steps: rank 1 stores twice."""
    seconds = [took(rank, step) for step in timed for rank in (0, 1, 1)]
    return sum(seconds) / len(seconds)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_all_ranks_time_the_same_steps_and_count_all(said: list[dict[str, Any]], n: int) -> None:
    for rank in said:
        one = rank[str(n)]
        assert one["world"] == 2
        assert one["timed"] == list(range(n - 1, STEPS, n))
        assert one["mean"] == pytest.approx(mean(one["timed"]), rel=1e-9)
        assert one["calls"] == one["stored"] == STEPS * 3
        assert one["source"].endswith(f", every {n}{'rd' if n == 3 else 'th'} step") is (n > 1)


def test_what_one_rank_costs_makes_all_sample_less_in_the_same_steps(
    said: list[dict[str, Any]],
) -> None:
    first, second = (rank["adaptive"] for rank in said)
    assert first["chosen"] == second["chosen"]
    assert first["timed"] == second["timed"]
    assert first["mean"] == pytest.approx(mean(first["timed"]), rel=1e-9) == second["mean"]
    assert first["calls"] == second["calls"] == STEPS * 3
    changes = [s for s in range(1, STEPS) if first["chosen"][s] != first["chosen"][s - 1]]
    # a window's numbers are known within the next: its word holds from the one after that on
    assert [first["chosen"][s] for s in changes] == [2, 4]
    assert changes == [12, 24]
    # five cheap windows under that word later, at the very end, it is taken back by half
    assert [end + 1 for end in first["marks"]] == [*changes, 24 + 6 * WINDOW]
    assert second["marks"] == []


def test_each_rank_tells_what_its_own_hooks_took(said: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(said):
        expected = sum(share(number, step) for step in range(STEPS))
        assert rank["3"]["hooks"] == pytest.approx(expected)
