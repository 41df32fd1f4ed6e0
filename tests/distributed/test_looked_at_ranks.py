"""What a closer look at tensors gives, of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from tests.distributed.processes import Rank, results
from tests.memory_models.buffers import ListBuffer

pytestmark = pytest.mark.distributed

NAMES = ("retrieval_similarity", "output_entropy", "batch_size", "tokens")


class Asking(nn.Module):
    """Asks a memory of one state with a state at so many degrees from it."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        self.memory_buffer = ListBuffer(4, 4, (2,))
        self.memory_buffer.store_state(torch.tensor([1.0, 0.0]), 2, key=1)
        angle = torch.deg2rad(torch.tensor(degrees))
        self.query = torch.stack((angle.cos(), angle.sin()))

    def forward(self, input_ids: Tensor) -> Tensor:
        self.memory_buffer.retrieve_similar(self.query)
        return torch.zeros(*input_ids.shape, 4)


def _run(rank: Rank) -> dict[str, Any]:
    with rank.together():
        model = Asking((60.0, 90.0)[rank.rank])
        settings = {"log_every_n_steps": 1, "on_monitor_error": "raise"}
        monitor = CMRPerformanceMonitor(settings, alert_config={"enable_alerts": False})
        monitor.join_ranks()
        monitor.attach(model)
        monitor.agree_on_layers()
        for _ in range(3):
            with monitor.track_performance():
                model(input_ids=torch.zeros(2 + rank.rank, 5, dtype=torch.long))
        monitor.flush()
        snapshot = monitor.snapshot
        monitor.leave_ranks()
        monitor.detach()
    return {
        name: (
            snapshot.value(name),
            snapshot.value(name, over="window"),
            *snapshot.ranks(name).values(),
        )
        for name in NAMES
    }


def test_of_all_ranks_and_of_each(tmp_path: Path) -> None:
    for one in results(_run, 2, tmp_path / "job"):
        of_all, last, *ranks = one["retrieval_similarity"]
        assert ranks == pytest.approx([0.5, 0.0], abs=1e-6)
        assert of_all == last == pytest.approx(0.25, abs=1e-6)
        uniform = pytest.approx(torch.tensor(4.0).log().item())
        assert [*one["output_entropy"]] == [uniform] * 4
        assert one["batch_size"] == (2.5, 2.5, 2.0, 3.0)
        assert one["tokens"] == (3 * 25, 25, 10, 15)
