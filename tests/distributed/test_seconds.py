"""Windows by seconds: rank 0's clock alone says when they end, however fast the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.clock import ManualClock
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed

STEPS = 64
INTERVAL = 0.5


class _Sink:
    def __init__(self) -> None:
        self.ends: list[tuple[int, int, float]] = []

    def write(self, report: Any) -> None:
        shown = report.snapshot
        if shown.stage == "train":
            self.ends.append((shown.step, shown.world_size, shown.value("states_stored")))

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def _play(rank: Rank, per_step: tuple[float, float], stage_at: int) -> dict[str, Any]:
    """Both ranks step in turn; a step takes each as long as its own clock says."""
    clock = ManualClock()
    settings = {"metric_collection_interval": INTERVAL, "on_monitor_error": "raise"}
    quiet = {"enable_alerts": False}
    monitor = CMRPerformanceMonitor(settings, alert_config=quiet, clock=clock)
    sink = _Sink()
    monitor.sinks.append(sink)
    monitor.join_ranks()
    monitor.record_capture(4, 0, 0.001)
    monitor.agree_on_layers()
    group = monitor._ranks._group
    assert group is not None
    before = group.collectives
    for step in range(STEPS):
        clock.advance(per_step[rank.rank])
        monitor.record_capture(4, 1, 0.001)
        monitor.step()
        if step == stage_at:
            monitor.enter_stage("val")
            clock.advance(100.0)
            monitor.leave_stage(step)
    monitor.flush()  # waits for what is under way
    windows = group.collectives - before
    monitor.leave_ranks()
    return {"ends": sink.ends, "windows": windows, "time": monitor.snapshot.time}


SPEEDS = {"equal": (0.05, 0.05), "rank 1 slow": (0.05, 3.0), "rank 1 fast": (0.05, 1e-4)}


def _run(rank: Rank) -> dict[str, Any]:
    with rank.together():
        said = {name: _play(rank, speeds, -1) for name, speeds in SPEEDS.items()}
        return said | {
            "slow steps": _play(rank, (2.0, 0.01), -1),
            "validation": _play(rank, (0.05, 0.05), 33),
        }


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("seconds") / "job"
    return results(_run, 2, folder)


@pytest.mark.parametrize("speeds", SPEEDS)
def test_rank_0_says_when_a_window_ends(said: list[dict[str, Any]], speeds: str) -> None:
    ends = [0, *range(10, STEPS, 10), STEPS - 1]
    for one in said:
        assert one[speeds]["ends"] == [(end, 2, 2.0 * (end + 1)) for end in ends]
        assert one[speeds]["windows"] == len(ends)
        assert one[speeds]["time"] == said[0][speeds]["time"]


def test_where_a_step_is_longer_than_a_window_none_is_waited_for(
    said: list[dict[str, Any]],
) -> None:
    for one in said:
        ends = [end for end, _, _ in one["slow steps"]["ends"]]
        assert ends == [*range(0, STEPS, 6), STEPS - 1]


def test_a_validation_between_moves_no_window_apart(said: list[dict[str, Any]]) -> None:
    first, other = (one["validation"]["ends"] for one in said)
    assert first == other
    ends = [end for end, _, _ in first]
    assert ends == sorted(ends)
    assert len(ends) <= 9
    assert [stored for _, _, stored in first] == [2.0 * (end + 1) for end in ends]
