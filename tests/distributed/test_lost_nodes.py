"""Four ranks on two nodes, their numbers by way of each node's first rank, and one is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Job, Outcome, Rank
from tests.distributed.test_lost_ranks import _Sink, _threads

pytestmark = pytest.mark.distributed

TIMEOUT = 2.0
WINDOW, STEPS, AT = 5, 30, 14
NODES = "aabb"
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
FAULTS = {
    "a node's second rank is killed": (3, "killed"),
    "a node's first rank is killed": (2, "killed"),
    "rank 0 is killed": (0, "killed"),
    "a node's second rank hangs": (1, "stopped"),
    "a node's first rank hangs": (2, "stopped"),
    "a rank skips a window": (3, "skips"),
    "a rank is late": (1, "late"),
}


def _loop(rank: Rank, lost: int, fault: str) -> dict[str, Any]:
    with rank.together():
        before = _threads()
        settings = {
            "log_every_n_steps": WINDOW,
            "reduction": "hierarchical",
            "reduction_timeout": TIMEOUT,
        }
        monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
        monitor._ranks._node = NODES[rank.rank]
        sink = _Sink()
        monitor.sinks.append(sink)
        monitor.join_ranks()
        monitor.record_capture(4, 1, 0.001)
        monitor.agree_on_layers()
        start = time.monotonic()
        for step in range(STEPS):
            monitor.record_capture(4, 1, 0.001)
            if step == AT and rank.rank == lost:
                # the window before has been taken here; the others have it only when they say so
                for other in set(range(rank.world)) - {lost}:
                    rank.wait_for("at", other)
                if fault == "late":
                    time.sleep(2 * TIMEOUT)
                elif fault != "skips":
                    os.kill(os.getpid(), SIGNALS[fault])
            if step == AT:
                rank.say("at")
            if not (fault == "skips" and rank.rank == lost and AT <= step < AT + WINDOW):
                monitor.step(step)
        monitor.flush()
        said: dict[str, Any] = {
            "stored": monitor.snapshot.value("states_stored"),
            "worlds": list(sink.worlds.values()),
            "failures": monitor.failures,
            "step": monitor.snapshot.step,
        }
        monitor.leave_ranks()
        said["seconds"] = time.monotonic() - start
        said["groups"] = len(dist.distributed_c10d._world.pg_map)
        end = time.monotonic() + 10
        while _threads() > before and time.monotonic() < end:
            time.sleep(0.02)  # C++ threads end on their own
        said["threads"] = _threads() - before
        return said


@pytest.fixture(scope="module", params=FAULTS)
def survivors(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Outcome]]:
    """What became of the ranks that had to go on."""
    lost, fault = FAULTS[request.param]
    job = Job(_loop, len(NODES), tmp_path_factory.mktemp("lost") / "job", lost, fault)
    others = [rank for rank in range(len(NODES)) if rank != lost]
    try:
        job.join(40.0, ranks=others)
        job.signal(lost, signal.SIGCONT)
        job.join(40.0)
    finally:
        job.kill()
    outcomes = job.outcomes()
    for rank in others:
        assert outcomes[rank].code == 0, outcomes[rank].output
    assert outcomes[lost].code == (-signal.SIGKILL if fault == "killed" else 0)
    yield [outcomes[rank] for rank in (others if fault == "killed" else range(len(NODES)))]


def test_each_goes_on_alone_and_says_so_once(survivors: list[Outcome]) -> None:
    for outcome in survivors:
        said = outcome.result
        assert said["step"] == STEPS - 1
        assert said["worlds"][:2] == [4, 4]
        assert set(said["worlds"][2:]) == {1}
        # all that the four counted in two windows, and what is its own since then
        assert said["stored"] == 4 * (1 + 2 * WINDOW) + STEPS - 2 * WINDOW
        assert said["failures"] == 1
        assert len(outcome.logs) == 1, outcome.logs
        assert "numbers of this rank are its own" in outcome.logs[0]


def test_nothing_is_left_and_nothing_took_long(survivors: list[Outcome]) -> None:
    for outcome in survivors:
        assert outcome.result["seconds"] < 15 * TIMEOUT
        assert outcome.result["groups"] == 1
        assert outcome.result["threads"] == 0
