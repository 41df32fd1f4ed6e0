"""Two ranks with machines of known numbers: mean, greatest and its rank, on both alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor, RunHistory
from cmr_monitor_callbacks.catalogue import RESOURCE_NAMES
from cmr_monitor_callbacks.config import ResourcesConfig
from cmr_monitor_callbacks.custom import MOST
from cmr_monitor_callbacks.distributed.payload import payload_length
from cmr_monitor_callbacks.resources.gpu import GpuReader
from cmr_monitor_callbacks.resources.watch import ResourceWatch
from tests.distributed.fitting import STRICT
from tests.distributed.processes import Rank, results
from tests.fake_nvml import FakeGpu, FakeNvml

pytestmark = pytest.mark.distributed


class Machine:
    """A node of two GPUs; the rank's own is the one of its number."""

    def __init__(self, rank: int) -> None:
        gpus = (
            FakeGpu("GPU-0", busy=90, heat=60, milliwatts=200_000, used=40 * 2**30),
            FakeGpu("GPU-1", busy=30, heat=80, milliwatts=400_000, used=60 * 2**30, errors=0),
        )
        self.rank, self.gpus, self.samples = rank, gpus, 0
        self.reader = GpuReader(lambda: [(rank, "")], lambda: FakeNvml(*gpus))

    def read(self, now: float) -> dict[str, float]:
        self.samples += 1
        mine = self.gpus[self.rank]
        mine.heat += 10 * (self.samples == 2)
        mine.errors += self.rank * (self.samples == 2)
        found = self.reader.read(now)
        return {**found, "cpu_percent": 100.0 * (1 + self.rank), "disk_free_mb": 500.0 - self.rank}

    def forget(self) -> None: ...

    def close(self) -> None:
        self.reader.close()


def _run(rank: Rank, folder: Path) -> dict[str, Any]:
    with rank.together():
        monitor = CMRPerformanceMonitor(
            {"log_every_n_steps": 2, **STRICT},
            alert_config={"alert_channels": []},
            model=nn.Linear(2, 2),
            resources=ResourcesConfig(enabled=False),
        )
        machine = Machine(rank.rank)
        # nothing but these numbers: no thread, and one sample at each step
        watch = ResourceWatch(monitor.resources_config, monitor.clock)
        monitor.resources = monitor._parts.resources = watch
        monitor.open_history(folder, rank.rank, rank.world)
        monitor.join_ranks()
        monitor.agree_on_layers()
        group = monitor._ranks._group
        before = group.collectives
        for _ in range(4):
            with monitor.track_performance():
                monitor.resources.look(machine)
        monitor.flush()
        snapshot = monitor.snapshot
        collectives = group.collectives - before
        names = [name for name in RESOURCE_NAMES if snapshot.value(name) == snapshot.value(name)]
        found = {
            "windows": monitor.windows,
            "collectives": collectives,
            "whole": {name: snapshot.value(name) for name in names},
            "ranks": {name: snapshot.ranks(name) for name in names},
            "greatest": {name: snapshot.greatest(name) for name in names},
            "resources": monitor.health.component_status()["resources"],
        }
        monitor.leave_ranks()
        monitor.detach()
        monitor.close_history("completed")
    return found


def test_mean_greatest_and_its_rank(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first, second = results(_run, 2, tmp_path, tmp_path / "run", limit=120.0)
    assert first == second
    assert (first["windows"], first["collectives"]) == (2, 2)
    whole, ranks, greatest = first["whole"], first["ranks"], first["greatest"]
    assert ranks["gpu_utilization"] == {0: 90.0, 1: 30.0}
    assert (whole["gpu_utilization"], greatest["gpu_utilization"]) == (60.0, (90.0, 0))
    assert ranks["gpu_temperature"] == {0: 70.0, 1: 90.0}
    assert (whole["gpu_temperature"], whole["gpu_temperature_max"]) == (80.0, 90.0)
    assert greatest["gpu_temperature_max"] == (90.0, 1)
    assert (whole["gpu_power"], greatest["gpu_power_max"]) == (300.0, (400.0, 1))
    assert (whole["gpu_memory_percent"], greatest["gpu_memory_percent"]) == (62.5, (75.0, 1))
    assert (whole["cpu_percent"], whole["cpu_percent_max"]) == (150.0, 200.0)
    assert (whole["disk_free_mb"], ranks["disk_free_mb"]) == (499.0, {0: 500.0, 1: 499.0})
    assert (whole["gpu_ecc_errors"], greatest["gpu_ecc_errors"]) == (1.0, (1.0, 1))
    assert first["resources"] in ("warning", "healthy")
    with RunHistory(tmp_path / "run") as history:
        assert history.series("gpu_temperature_max").value.tolist() == [90.0, 90.0]
        assert history.series("gpu_temperature", rank=1).value.tolist() == [85.0, 90.0]
        # one by one rank 0's alone
        heat = history.series("gpu_temperature", stage="resources")
        assert heat.value.tolist() == [60.0, 70.0, 70.0, 70.0]
        assert history.ranks() == [0, 1]


def test_a_window_fits_in_its_payload() -> None:
    assert 8 * payload_length(13, names=MOST) <= 32 * 1024
