"""Profiles on two ranks: the same steps on both, one file, one note."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback, CMRMonitorError
from tests.distributed.fitting import STRICT, fitter, logger, module
from tests.distributed.processes import Rank, free_port, results
from tests.models import loader

pytestmark = pytest.mark.distributed


class _On(pl.Callback):
    """In which batches the profiler is on."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, *args: Any) -> None:
        if torch.autograd.profiler._is_profiler_enabled:
            self.found.append(trainer.fit_loop.total_batch_idx)


MANY = {
    "metric": "states_captured",
    "over": "run",
    "condition": ">",
    "thresholds": {"warning": 200},
}


def _run(rank: Rank, port: int, profiling: dict[str, Any], alerts: Any) -> dict[str, Any]:
    monitoring = {**STRICT, "enable_profiling": True}
    ours = CMRMonitorCallback(monitoring=monitoring, alerts=alerts, profiling=profiling)
    model, _ = module()
    model.register_forward_pre_hook(lambda *args: time.sleep(0.005 * rank.rank))
    on = _On()
    fit = fitter(rank, port, rank.folder, [ours, on], logger=logger(rank.folder))
    fit.fit(model, loader(64))
    planner = ours.monitor.profiler.planner
    assert planner is not None
    try:
        about = ours.monitor.get_profile_results()["about"]
    except CMRMonitorError:
        about = None
    fired = [t.step for t in ours.monitor.alerts.transitions if t.name == "firing"]
    return {"on": on.found, "about": about, "made": planner.made, "fired": fired}


@pytest.mark.parametrize("ranks", [[0], [0, 1], [1]], ids=str)
def test_a_schedule_on_two_ranks(tmp_path: Path, ranks: list[int]) -> None:
    profiling = {"schedule": {"wait": 4, "warmup": 1, "active": 2}, "ranks": ranks}
    found = results(_run, 2, tmp_path, free_port(), profiling, None, limit=120.0)
    for rank, one in enumerate(found):
        assert one["made"] == 1  # decided alike, whoever is profiled
        assert one["on"] == ([5, 6] if rank in ranks else [])
        if rank in ranks:
            assert one["about"]["rank"] == rank
            assert (one["about"]["first_step"], one["about"]["last_step"]) == (5, 6)
        else:
            assert one["about"] is None
    traces = {path.name.split(".")[0] for path in tmp_path.rglob("*.pt.trace.json.gz")}
    assert {int(name.rpartition("_")[2]) for name in traces} == set(ranks)


def test_an_alert_has_the_same_steps_profiled_on_both(tmp_path: Path) -> None:
    trigger = {"rules": {"many": 2}}
    profiling = {"schedule": None, "trigger": trigger, "ranks": [0, 1]}
    alerts = {"rules": {"many": MANY}}
    one, other = results(_run, 2, tmp_path, free_port(), profiling, alerts, limit=120.0)
    assert len(one["on"]) == 2
    assert one["on"] == other["on"]
    assert one["fired"] == other["fired"]
    assert one["on"][0] > one["fired"][0]
    assert {one["about"]["reason"], other["about"]["reason"]} == {"many"}
