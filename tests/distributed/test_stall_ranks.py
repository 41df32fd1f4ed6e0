"""A rank that stands still, and one that waits for it in a collective: each names its own phase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks import CMRMonitorCallback, Notice
from tests.distributed.fitting import fitter
from tests.distributed.processes import Rank, free_port, results
from tests.ear import Ear
from tests.models import MemoryModule, loader

pytestmark = pytest.mark.distributed
QUICK = {"after": 2.0, "times_median": 0.001, "start": 60.0}


class TellingEar(Ear):
    """Says in a file that this rank's watchdog has spoken."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    def submit(self, notice: Notice) -> None:
        super().submit(notice)
        if not notice.resolved:
            self._rank.say("stalled")


class OneWaits(MemoryModule):
    """In its fourth step the last rank does nothing until both watchdogs have spoken."""

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self.at = rank

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.global_step == 3 and self.at.rank == self.at.world - 1:
            for rank in range(self.at.world):
                self.at.wait_for("stalled", rank)
        return super().training_step(*args, **kwargs)


def _run(rank: Rank, port: int) -> dict[str, Any]:
    callback = CMRMonitorCallback(alerts={"rules": {}, "stall": QUICK})
    ear = TellingEar(rank)
    callback.monitor.alerts.delivery = ear  # type: ignore[assignment]
    fit = fitter(rank, port, rank.folder, [callback], max_steps=6)
    fit.fit(OneWaits(rank), loader(40))
    first = next(n for n in ear.notices if n.alerts[0].labels["phase"] != "start")
    return {
        "phase": first.alerts[0].labels["phase"],
        "text": first.text,
        "next": ear.notices[ear.notices.index(first) + 1].title,
        "steps": fit.global_step,
    }


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_names_its_own_phase(tmp_path: Path, world: int) -> None:
    found = results(_run, world, tmp_path / "job", free_port())
    assert found[-1]["phase"] == "forward"
    assert "test_stall_ranks.py" in found[-1]["text"] or "processes.py" in found[-1]["text"]
    assert [one["phase"] for one in found[:-1]] == ["backward"] * (world - 1)
    for rank, one in enumerate(found):
        assert f"rank {rank} has stood still" in one["text"]
        assert (one["next"], one["steps"]) == ("RESOLVED training_stalled", 6)
        [stacks] = (tmp_path / "job").rglob(f"stacks-rank{rank:03d}.txt")
        assert "Thread" in stacks.read_text()
