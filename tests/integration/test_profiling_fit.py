"""Profiles of a real Trainer: the right steps, by schedule and by alert, and training unchanged."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.profilers import PyTorchProfiler

from cmr_monitor_callbacks import CMRMonitorCallback, CMRMonitorError
from cmr_monitor_callbacks.profiling import load_results
from tests.integration.test_bitwise import same, train
from tests.models import MemoryModule, loader, trainer


class Steps(pl.Callback):
    """In which batches the profiler of torch is on while the model trains."""

    def __init__(self) -> None:
        self.on: list[int] = []

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Any) -> None:
        if torch.autograd.profiler._is_profiler_enabled:
            self.on.append(trainer.fit_loop.total_batch_idx)


def monitored(alerts: dict[str, Any] | None = None, **profiling: Any) -> CMRMonitorCallback:
    """A strict callback that profiles."""
    monitoring = {"on_monitor_error": "raise", "enable_profiling": True}
    return CMRMonitorCallback(monitoring=monitoring, alerts=alerts, profiling=profiling)


def board(root: Path) -> Any:
    """TensorBoard's logger, in this very folder."""
    return TensorBoardLogger(str(root), name="", version="")


def saved(root: Path) -> list[dict[str, Any]]:
    """All results under a run's folder, by step."""
    files = (root / "plugins" / "profile").rglob("*.profile.json")
    return sorted((load_results(file) for file in files), key=lambda r: r["about"]["first_step"])


def test_a_schedule_profiles_its_steps(tmp_path: Path) -> None:
    schedule = {"wait": 3, "warmup": 1, "active": 2, "repeat": 2}
    ours, steps = monitored(schedule=schedule), Steps()
    trainer(tmp_path, [ours, steps], logger=board(tmp_path)).fit(MemoryModule(), loader(20))
    assert steps.on == [4, 5, 10, 11]  # in the warm-up torch says that it is off
    found = saved(tmp_path)
    abouts = [result["about"] for result in found]
    assert [(a["first_step"], a["last_step"], a["steps"]) for a in abouts] == [
        (4, 5, 2),
        (10, 11, 2),
    ]
    assert {a["reason"] for a in abouts} == {"schedule"}
    for result in found:
        assert result["sections"]["cmr/forward"]["calls"] == 2
        assert result["sections"]["cmr/forward/layer_4"]["calls"] == 2
        assert "aten::addmm" in {row["name"] for row in result["operators"]}
        assert Path(result["about"]["trace"]).is_file()
    assert ours.monitor.get_profile_results() == found[-1]
    with ours.monitor.history as history:
        notes = [(note["step"], note["label"].partition(":")[0]) for note in history.marks()]
    assert notes == [
        (5, "profile of steps 4 to 5 (schedule)"),
        (11, "profile of steps 10 to 11 (schedule)"),
    ]


def test_steps_of_accumulated_batches_are_optimizer_steps(tmp_path: Path) -> None:
    ours, steps = monitored(schedule={"wait": 2, "warmup": 0, "active": 1}), Steps()
    fitter = trainer(tmp_path, [ours, steps], logger=False, accumulate_grad_batches=4)
    fitter.fit(MemoryModule(), loader(20))
    assert steps.on == [8, 9, 10, 11]
    results = ours.monitor.get_profile_results()
    assert results["about"]["steps"] == 1
    assert results["sections"]["cmr/forward"]["calls"] == 4
    assert results["about"]["trace"] is None  # nobody asked for files


MANY = {
    "metric": "states_captured",
    "over": "run",
    "condition": ">",
    "thresholds": {"warning": 40},
}


def test_an_alert_that_fires_has_the_next_steps_profiled(tmp_path: Path) -> None:
    trigger = {"rules": {"many": 3}, "cooldown": 100}
    ours, steps = monitored({"rules": {"many": MANY}}, schedule=None, trigger=trigger), Steps()
    trainer(tmp_path, [ours, steps], logger=board(tmp_path)).fit(MemoryModule(), loader(40))
    [fired] = [t for t in ours.monitor.alerts.transitions if t.name == "firing"]
    assert fired.step > 4  # not with the first window
    assert steps.on == [fired.step + 1, fired.step + 2, fired.step + 3]
    [result] = saved(tmp_path)
    assert result["about"]["reason"] == "many"
    assert result["about"]["first_step"] == fired.step + 1
    assert (tmp_path / "plugins" / "profile" / f"step_{fired.step + 1}_many").is_dir()


def test_validation_ends_a_profile_cleanly(tmp_path: Path) -> None:
    ours, steps = monitored(schedule={"wait": 2, "warmup": 0, "active": 10}), Steps()
    fitter = trainer(tmp_path, [ours, steps], logger=False, val_check_interval=5)
    fitter.fit(MemoryModule(), loader(15), loader(3))
    assert steps.on == [2, 3, 4]
    about = ours.monitor.get_profile_results()["about"]
    assert (about["first_step"], about["last_step"], about["steps"]) == (2, 4, 3)
    assert about["error"] == "val came between"


class Fails(MemoryModule):
    """Raises in a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 4:
            raise ValueError("on purpose")
        return super().training_step(batch, batch_idx)


def test_an_exception_ends_a_profile_cleanly(tmp_path: Path) -> None:
    ours = monitored(schedule={"wait": 2, "warmup": 0, "active": 10})
    module = Fails()
    with pytest.raises(ValueError, match="on purpose"):
        trainer(tmp_path, [ours], logger=board(tmp_path)).fit(module, loader(15))
    assert not torch.autograd.profiler._is_profiler_enabled
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    [result] = saved(tmp_path)
    assert result["about"]["first_step"] == 2
    assert result["about"]["error"] is not None


def test_the_end_of_the_fit_ends_a_profile_cleanly(tmp_path: Path) -> None:
    ours = monitored(schedule={"wait": 2, "warmup": 0, "active": 100})
    trainer(tmp_path, [ours], logger=False).fit(MemoryModule(), loader(6))
    assert ours.monitor.get_profile_results()["about"]["steps"] == 4
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_fit_shorter_than_the_wait_makes_none(tmp_path: Path) -> None:
    ours, steps = monitored(), Steps()
    trainer(tmp_path, [ours, steps], logger=False).fit(MemoryModule(), loader(6))
    assert steps.on == []
    with pytest.raises(CMRMonitorError, match="no profile was made yet"):
        ours.monitor.get_profile_results()


def test_the_trainers_own_profiler_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = monitored(schedule={"wait": 1, "warmup": 0, "active": 2})
    theirs = PyTorchProfiler(dirpath=tmp_path, filename="theirs", export_to_chrome=False)
    with caplog.at_level(logging.WARNING, logger="cmr_monitor_callbacks"):
        trainer(tmp_path, [ours], logger=False, profiler=theirs).fit(MemoryModule(), loader(8))
    assert "the Trainer's PyTorchProfiler profiles this fit" in caplog.text
    report = (tmp_path / "fit-theirs.txt").read_text()
    assert "ProfilerStep" in report or "training_step" in report
    with pytest.raises(CMRMonitorError, match="PyTorchProfiler profiles this fit"):
        ours.monitor.get_profile_results()


def test_times_of_a_window_with_a_profile_are_no_data_for_rules(tmp_path: Path) -> None:
    """A profile takes time: no alert comes of it, which would have another profile made."""
    slow = {"metric": "step_time", "condition": ">", "thresholds": {"warning": 0.0}}
    for mute, fires in ((["profile"], 0), ([], 1)):
        ours = monitored(
            {"rules": {"slow": slow}, "mute": mute},
            schedule={"wait": 0, "warmup": 0, "active": 100},
        )
        trainer(tmp_path, [ours], logger=False).fit(MemoryModule(), loader(10))
        assert len([t for t in ours.monitor.alerts.transitions if t.name == "firing"]) == fires


@pytest.mark.parametrize("on", [False, True])
def test_without_profiling_a_step_calls_nothing_of_it(tmp_path: Path, on: bool) -> None:
    ours = CMRMonitorCallback(monitoring={"on_monitor_error": "raise", "enable_profiling": on})
    fitter = trainer(tmp_path, [ours], logger=False)
    called: dict[str, int] = {}

    def note(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and Path(code.co_filename).parent.name == "profiling":
            called[code.co_name] = called.get(code.co_name, 0) + 1

    sys.setprofile(note)
    try:
        fitter.fit(MemoryModule(), loader(15))
    finally:
        sys.setprofile(None)
    # at the start of the fit, for each of its three windows, and at its end
    once = {"begin_run": 1, "place": 1, "hear": 3}
    assert {name: called.pop(name) for name in once} == once
    assert set(called) >= {"begin_step", "end_step"} if on else set(called) == {"interrupt"}


@pytest.mark.parametrize("model", [{}, {"recompute": "direct"}], ids=["plain", "recompute"])
def test_training_is_bitwise_the_same(tmp_path: Path, model: dict[str, Any]) -> None:
    without = train(tmp_path / "without", [], {}, model)
    schedule = {"wait": 5, "warmup": 1, "active": 4, "repeat": 3}
    ours = monitored(schedule=schedule, record_shapes=True)
    with_it = train(tmp_path / "with", [ours], {}, model)
    assert ours.monitor.get_profile_results()["about"]["first_step"] == 26
    for name, value in without.items():
        assert same(value, with_it[name]), name


def test_results_are_json(tmp_path: Path) -> None:
    ours = monitored(schedule={"wait": 0, "warmup": 0, "active": 1})
    trainer(tmp_path, [ours], logger=False).fit(MemoryModule(), loader(3))
    results = ours.monitor.get_profile_results()
    assert json.loads(json.dumps(results, allow_nan=False)) == results
