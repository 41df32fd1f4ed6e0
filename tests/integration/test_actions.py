"""What a rule does when it fires, in a real Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback, CriticalAlert
from tests.models import MemoryModule, loader, trainer

RULE = {
    "metric": "states_captured",
    "condition": ">",
    "thresholds": {"error": 0},
    "for": "10 steps",
}


def callback(*actions: str, **more: Any) -> CMRMonitorCallback:
    return CMRMonitorCallback(
        monitoring={"on_monitor_error": "raise", "log_every_n_steps": 5},
        alerts={"rules": {"busy": RULE | {"actions": list(actions)}}, **more},
    )


def test_stop(tmp_path: Path) -> None:
    fitter = trainer(tmp_path, [callback("stop")], max_steps=40)
    fitter.fit(MemoryModule(), loader(40))
    assert fitter.global_step == 15  # met at step 4, ten steps on is 14


def test_checkpoint(tmp_path: Path) -> None:
    module = MemoryModule()
    fitter = trainer(tmp_path, [callback("checkpoint")], max_steps=20)
    fitter.fit(module, loader(20))
    [path] = tmp_path.rglob("cmr-monitor-*.ckpt")
    assert path.name == "cmr-monitor-step=15.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 15
    assert set(saved["state_dict"]) == set(module.state_dict())


def test_a_checkpoint_that_fails_does_not_keep_a_run_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = CMRMonitorCallback(
        monitoring={"log_every_n_steps": 5},
        alerts={"rules": {"busy": RULE | {"actions": ["checkpoint", "stop"]}}},
    )
    fitter = trainer(tmp_path, [watched], max_steps=40)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(fitter, "save_checkpoint", full)
    fitter.fit(MemoryModule(), loader(40))
    assert fitter.global_step == 15
    [line] = watched.monitor.error_log
    assert "checkpoint, for alert busy" in line
    assert "No space left on device" in line


class Spoils(pl.Callback):
    """Makes a weight NaN at a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == 12:
            with torch.no_grad():
                next(iter(pl_module.parameters())).fill_(float("nan"))


def test_weights_that_are_not_finite_are_kept_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = tmp_path / "cmr-monitor-step=15.ckpt"
    good.write_bytes(b"good")
    fitter = trainer(tmp_path, [Spoils(), callback("checkpoint")], max_steps=20)
    fitter.fit(MemoryModule(), loader(20))
    assert good.read_bytes() == b"good"
    assert len(list(tmp_path.rglob("cmr-monitor-step=15-nonfinite.ckpt"))) == 1
    assert "the weights are not finite" in caplog.text


def test_raise_ends_the_run_with_the_numbers(tmp_path: Path) -> None:
    one = callback("raise")
    fitter = trainer(tmp_path, [one], max_steps=40)
    with pytest.raises(CriticalAlert, match="alert busy: states_captured is") as caught:
        fitter.fit(MemoryModule(), loader(40))
    assert fitter.global_step == 15
    assert caught.value.numbers["step"] == 14
    assert caught.value.numbers["metrics"]["total_captures"] > 0
    assert one.snapshot.step == 14  # flushed and let go


def test_log_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cmr_monitor_callbacks.windows"):
        trainer(tmp_path, [callback("log")], max_steps=40).fit(MemoryModule(), loader(40))
    said = [
        r.getMessage() for r in caplog.records if r.name.startswith("cmr_monitor_callbacks.windows")
    ]
    assert len([text for text in said if text.startswith("alert busy: ")]) == 1


def test_an_alert_from_code(tmp_path: Path) -> None:
    one = callback()
    heard: list[tuple[str, bool, int]] = []
    one.monitor.set_alert(
        "states_captured",
        "> 0",
        lambda alert: heard.append((alert.rule, alert.resolved, alert.step)),
    )
    seen: list[float] = []

    def odd(value: float) -> bool:
        seen.append(value)
        return len(seen) % 2 == 1

    one.monitor.set_alert("step_time", odd, lambda alert: heard.append(("odd", alert.resolved, 0)))
    trainer(tmp_path, [one], max_steps=20).fit(MemoryModule(), loader(20))
    assert heard[0] == ("states_captured:>", False, 4)
    assert [resolved for rule, resolved, _ in heard if rule == "odd"] == [False, True, False, True]
    assert len(seen) == 4
