"""``cmr-monitor profile`` on profiles that were really made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe
from cmr_monitor_callbacks.cli import app
from cmr_monitor_callbacks.profiling import load_results, save_results

RUNNER = CliRunner(env={"COLUMNS": "200"})


class Model(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.probe = CMRProbe(4)

    def forward(self, x: Tensor) -> Tensor:
        with self.probe.timer("capture"):
            return self.layer(x)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with a profile."""
    model = Model()
    monitor = CMRPerformanceMonitor(model=model)
    monitor.enable_profiling()
    monitor.open_history(tmp_path / "run")
    with monitor.profile_execution():
        for _ in range(8):
            model(torch.ones(2, 8))
    monitor.close_history("completed")
    return tmp_path / "run"


def call(*arguments: object) -> Any:
    return RUNNER.invoke(app, ["profile", *map(str, arguments)])


def test_a_profile_is_shown(run: Path) -> None:
    done = call(run)
    assert done.exit_code == 0
    results = load_results(run)
    for text in ("cmr/capture/layer_4", "aten::addmm", results["about"]["trace"]):
        assert text in done.stdout
    assert results["bottleneck"]["sentence"] in done.stdout
    assert json.loads(call(run, "--json").stdout) == results


def test_a_slower_profile_is_exit_code_1(run: Path, tmp_path: Path) -> None:
    results = load_results(run)
    for row in results["sections"].values():
        row["median_seconds"] += 0.05
    save_results(results, tmp_path / "slow.profile.json")
    slower = call(tmp_path / "slow.profile.json", "--against", run)
    assert slower.exit_code == 1
    assert "slower" in slower.stdout
    assert call(run, "--against", run).exit_code == 0
    faster = call(run, "--against", tmp_path / "slow.profile.json", "--json")
    assert faster.exit_code == 0
    verdicts = {change["section"]: change["verdict"] for change in json.loads(faster.stdout)}
    assert verdicts["cmr/capture/layer_4"] == "faster"


def test_where_there_is_none_it_is_said_in_a_line(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.exit_code == 2
    assert "enable_profiling" in done.output
    assert "Traceback" not in done.output
