"""What one rank asks for, all ranks do, at the same step and for the same reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

STEPS = 30
LONG = "the buffer of layer 4 has been empty for a while — " * 5
Decision = tuple[int, str, str]
Scene = Callable[[Rank, CMRPerformanceMonitor, int], None]


def _one_asks(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == rank.world - 1 and step == 12:
        monitor.request_stop("rank says so")


def _for_a_checkpoint(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == 0 and step == 12:
        monitor.request_checkpoint("save it")


def _both(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == 1 and step == 12:
        monitor.request_checkpoint("save it")
        monitor.request_stop("then stop")


def _two_ranks(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if step == 12:
        monitor.request_stop(f"rank {rank.rank}")


def _each_window(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == 1 and step in (2, 12):
        monitor.request_stop(f"at step {step}")


def _again_under_way(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    """The window that ends at step 14 is under way until step 18."""
    if rank.rank == 1 and step in (12, 16):
        monitor.request_checkpoint(f"at step {step}")


def _long(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == 1 and step == 12:
        monitor.request_stop(LONG)


def _no_reason(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    if rank.rank == 1 and step == 12:
        monitor.request_stop("")


def _a_state_on_one_rank(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    """Rank 0 alone looks at its state, while the window with the vote is under way."""
    _one_asks(rank, monitor, step)
    if rank.rank == 0 and step == 16:
        monitor.state_dict()


def _with_a_new_layer(rank: Rank, monitor: CMRPerformanceMonitor, step: int) -> None:
    """The same, where all have to agree on a new layer as well."""
    _a_state_on_one_rank(rank, monitor, step)
    if rank.rank == 1 and step == 13:
        monitor.record_capture(7, 1, 0.001)


SCENES: dict[str, Scene] = {
    "one asks": _one_asks,
    "for a checkpoint": _for_a_checkpoint,
    "both": _both,
    "two ranks": _two_ranks,
    "each window": _each_window,
    "again under way": _again_under_way,
    "long": _long,
    "no reason": _no_reason,
    "a state on one rank": _a_state_on_one_rank,
    "a state on one rank, and a new layer": _with_a_new_layer,
}


def _run(rank: Rank) -> dict[str, Any]:
    with rank.together():
        return {name: _play(rank, scene) for name, scene in SCENES.items()}


def _play(rank: Rank, scene: Scene) -> dict[str, Any]:
    settings = {"log_every_n_steps": 5, "on_monitor_error": "raise", "reduction_timeout": 10.0}
    monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
    decisions: list[Decision] = []
    monitor.on_decision = lambda kind, why: decisions.append((monitor.current_step, kind, why))
    monitor.join_ranks()
    monitor.agree_on_layers()
    for step in range(STEPS):
        monitor.record_capture(4, 1, 0.001)
        scene(rank, monitor, step)
        monitor.step()
    monitor.flush()
    stored = monitor.snapshot.layers("states_stored")
    monitor.leave_ranks()
    return {"decisions": decisions, "stored": stored}


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def said(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("votes") / "job"
    return results(_run, request.param, folder)


# the window ends at step 14 and is taken four steps later: windows of 5 leave no more
DECIDED: dict[str, list[Decision]] = {
    "one asks": [(18, "stop", "rank says so")],
    "for a checkpoint": [(18, "checkpoint", "save it")],
    "both": [(18, "stop", "then stop"), (18, "checkpoint", "save it")],
    "two ranks": [(18, "stop", "rank 0")],
    "each window": [(8, "stop", "at step 2"), (18, "stop", "at step 12")],
    "again under way": [(18, "checkpoint", "at step 12"), (23, "checkpoint", "at step 16")],
    "no reason": [(18, "stop", "")],
    "a state on one rank": [(18, "stop", "rank says so")],
    "a state on one rank, and a new layer": [(18, "stop", "rank says so")],
}


@pytest.mark.parametrize("scene", DECIDED)
def test_all_decide_at_the_same_step_for_the_same_reason(
    said: list[dict[str, Any]], scene: str
) -> None:
    assert [one[scene]["decisions"] for one in said] == [DECIDED[scene]] * len(said)


def test_a_long_reason_is_cut_and_the_same_everywhere(said: list[dict[str, Any]]) -> None:
    [(step, kind, why)] = said[0]["long"]["decisions"]
    assert (step, kind) == (18, "stop")
    assert LONG.startswith(why.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert len(why) > 80
    assert all(one["long"] == said[0]["long"] for one in said)


def test_votes_cost_no_number(said: list[dict[str, Any]]) -> None:
    for one in said:
        for name, scene in one.items():
            late = {7: 1.0} if "new layer" in name else {}
            assert scene["stored"] == {4: float(STEPS * len(said)), **late}


def _alone(rank: Rank) -> list[Decision]:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 5}, alert_config={"enable_alerts": False})
    decisions: list[Decision] = []
    monitor.on_decision = lambda kind, why: decisions.append((monitor.current_step, kind, why))
    monitor.join_ranks()
    monitor.agree_on_layers()
    for step in range(12):
        if step == 7:
            monitor.request_stop("enough")
        monitor.step()
    monitor.leave_ranks()
    return decisions


def test_one_process_decides_at_its_next_window(tmp_path: Path) -> None:
    assert _alone(Rank(0, 1, tmp_path)) == [(9, "stop", "enough")]
