"""What the fields of ``monitoring`` do that say how ranks come together: two ranks over gloo."""

from __future__ import annotations

from typing import Any

import pytest

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.contract.fields import shows
from tests.distributed.processes import Rank, results

pytestmark = pytest.mark.distributed
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "flat": {"reduction": "flat"},
    "hierarchical": {"reduction": "hierarchical"},
    "none": {"reduction": "none"},
    "auto, two at most": {"flat_up_to_ranks": 2},
    "auto, one at most": {"flat_up_to_ranks": 1},
    "flat, one at most": {"reduction": "flat", "flat_up_to_ranks": 1},
}
TIMEOUTS = (0.25, 0.75)


def _run(rank: Rank, settings: dict[str, Any]) -> dict[str, Any]:
    """A window of two ranks, each on a node of its own."""
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "on_monitor_error": "raise", **settings},
        alert_config={"enable_alerts": False},
    )
    monitor._ranks._node = f"node-{rank.rank}"
    monitor.join_ranks()
    monitor.agree_on_layers()
    group = monitor._ranks._group
    before = 0 if group is None else group.collectives_of_rank
    monitor.record_capture(4, 1 + rank.rank, 0.001)
    monitor.step()
    monitor.flush()
    said = {
        "world": monitor.snapshot.world_size,
        "stored": monitor.snapshot.value("states_stored"),
        "collectives": 0 if group is None else group.collectives_of_rank - before,
    }
    monitor.leave_ranks()
    return said


def _alone(rank: Rank, timeout: float) -> str:
    """Rank 0 does not come; for its word one waits twice as long."""
    if rank.rank == 0:
        rank.wait_for(f"over {timeout}", 1)
        return ""
    monitor = CMRPerformanceMonitor({"reduction_timeout": timeout})
    monitor.join_ranks()
    rank.say(f"over {timeout}")
    monitor.leave_ranks()
    return "\n".join(monitor.error_log)


def _all(rank: Rank) -> dict[str, Any]:
    with rank.together():
        found: dict[str, Any] = {name: _run(rank, settings) for name, settings in RUNS.items()}
        return found | {"errors": {timeout: _alone(rank, timeout) for timeout in TIMEOUTS}}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results(_all, 2, tmp_path_factory.mktemp("ranks"))


@shows("monitoring.reduction")
def test_reduction(said: list[dict[str, Any]]) -> None:
    for name in ("default", "flat", "hierarchical"):
        assert [(s[name]["world"], s[name]["stored"]) for s in said] == [(2, 3), (2, 3)]
    assert [(s["none"]["world"], s["none"]["stored"]) for s in said] == [(1, 1), (1, 2)]
    counts = {name: said[0][name]["collectives"] for name in RUNS}
    assert 0 == counts["none"] < counts["default"] == counts["flat"] < counts["hierarchical"]


@shows("monitoring.flat_up_to_ranks")
def test_flat_up_to_ranks(said: list[dict[str, Any]]) -> None:
    counts = {name: said[0][name]["collectives"] for name in RUNS}
    assert counts["auto, two at most"] == counts["flat, one at most"] == counts["flat"]
    assert counts["auto, one at most"] == counts["hierarchical"]


@shows("monitoring.reduction_timeout")
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_reduction_timeout(said: list[dict[str, Any]], timeout: float) -> None:
    assert f"rank 0 did not say within {2 * timeout:g} s" in said[1]["errors"][timeout]
