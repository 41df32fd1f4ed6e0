"""The loss with and without memory is that of all ranks' batches, each batch with one weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Rank, results
from tests.memory_models.diagnosed import Diagnosed, batches, train

pytestmark = pytest.mark.distributed
NAMES = ("loss_with_memory", "loss_without_memory", "memory_gain")


def _run(rank: Rank, route: str) -> dict[str, Any]:
    """Rank 0 compares one batch of a validation, rank 1 three; then rank 1 one while it trains."""
    with rank.together():
        monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 5, "on_monitor_error": "raise", "reduction": route},
            alert_config={"enable_alerts": False},
        )
        monitor._ranks._node = f"node-{rank.rank}"
        monitor.join_ranks()
        torch.manual_seed(rank.rank)
        model = Diagnosed()
        monitor.attach(model)
        monitor.agree_on_layers()
        train(model, 10, monitor.track_performance)
        said: dict[str, Any] = {"of": []}

        def compare(x: torch.Tensor) -> None:
            pair = monitor.compare_memory(model, lambda of: float(of(x).square().mean()))
            said["of"].append(pair)

        monitor.enter_stage("val")
        for x in batches(1 + 2 * rank.rank, seed=rank.rank):
            compare(x)
        monitor.leave_stage(9)
        said["val"] = [monitor.snapshots["val"].value(name) for name in NAMES]
        if rank.rank == 1:
            compare(batches(1, seed=9)[0])
        train(model, 5, monitor.track_performance)
        monitor.flush()
        said["train"] = [monitor.snapshot.value(name) for name in NAMES]
        train(model, 5, monitor.track_performance)
        monitor.flush()
        said["after"] = [monitor.snapshot.value(name) for name in NAMES]
        monitor.leave_ranks()
        return said


@pytest.mark.parametrize("route", ["flat", "hierarchical"])
def test_losses_are_of_all_ranks(tmp_path: Path, route: str) -> None:
    one, other = results(_run, 2, tmp_path, route)
    pairs = [*one["of"], *other["of"][:3]]
    assert len(pairs) == 4 and len(set(pairs)) == 4
    means = [sum(pair[i] for pair in pairs) / 4 for i in (0, 1)]
    wanted = pytest.approx([*means, means[1] - means[0]], rel=1e-12)
    assert one["val"] == other["val"] == wanted
    alone = [*other["of"][3], other["of"][3][1] - other["of"][3][0]]
    assert one["train"] == other["train"] == pytest.approx(alone)
    assert all(value != value for value in (*one["after"], *other["after"]))  # none were compared
