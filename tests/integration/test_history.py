"""What a real run leaves in its history, against what every sink was told."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    CMRPerformanceMonitor,
    CMRProbe,
    HistoryError,
    InMemorySink,
    RunHistory,
)
from cmr_monitor_callbacks.catalogue import METRICS, Kind
from tests.integration.event_files import run_folder
from tests.models import LAYERS, MemoryModule, loader, trainer

STRICT = {"on_monitor_error": "raise"}


def stored(root: Path) -> Path:
    [path] = root.rglob("history.sqlite")
    return path


def test_every_number_of_every_window_is_kept_exactly(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    sink = InMemorySink()
    callback.monitor.sinks.append(sink)
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(23))
    path = stored(tmp_path)
    assert path.parent == run_folder(tmp_path)
    assert [p.name for p in path.parent.glob("history*")] == ["history.sqlite"]
    told = [report.snapshot for report in sink.reports]
    assert [s.step for s in told] == [4, 9, 14, 19, 22]
    with RunHistory(path) as history:
        assert history.layers() == list(LAYERS) and history.last() == (22, told[-1].time)
        checked = 0
        for metric in METRICS:
            over = "run" if metric.kind is Kind.COUNTER else "window"
            for layer in (None, *LAYERS):
                expected = [s.value(metric.name, layer, over=over) for s in told]  # type: ignore[arg-type]
                found = history.series(metric.name, layer)
                if all(math.isnan(value) for value in expected):
                    assert len(found) == 0
                    continue
                checked += 1
                assert found.value.tolist() == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
                assert found.step.tolist() == [4, 9, 14, 19, 22]
        assert checked > 100
        for name in ("score", "status", "overhead_fraction", "failures"):
            own = [s.own.get(name, math.nan) for s in told]
            assert history.series(name).value.tolist() == pytest.approx(own, abs=0, nan_ok=True)
        [session] = history.sessions()
    assert session["outcome"] == "completed" and session["state"] == "ended"
    assert session["sources"]["capture"].startswith("explicit:")
    assert session["config"]["monitoring"]["on_monitor_error"] == "raise"
    assert session["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("settings", [{"logger": False}, {"fast_dev_run": 6}])
def test_who_wants_no_files_gets_none(tmp_path: Path, settings: dict[str, Any]) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT | {"log_every_n_steps": 5})
    trainer(tmp_path, [callback], **settings).fit(MemoryModule(), loader(23))
    assert not list(tmp_path.rglob("history*"))
    history = callback.monitor.history  # in memory all the same
    assert history.series("states_stored").step[0] == 4
    assert callback.monitor.generate_report()["range"]["windows"] > 0


def test_a_file_where_somebody_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "mine.sqlite"
    callback = CMRMonitorCallback(monitoring=STRICT, history={"file": str(path)})
    trainer(tmp_path, [callback], logger=False).fit(MemoryModule(), loader(12))
    with RunHistory(path) as history:
        assert history.series("states_stored").step.tolist() == [4, 9, 11]


def test_switched_off_there_is_none(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT, history={"enabled": False})
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(12))
    assert not list(tmp_path.rglob("history*"))
    with pytest.raises(HistoryError, match=r"set history\.enabled to true"):
        callback.monitor.generate_report()


def test_other_stages_are_kept_apart(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(tmp_path, [callback], max_epochs=2)
    fitter.fit(MemoryModule(), loader(10), loader(4))
    with RunHistory(stored(tmp_path)) as history:
        val = history.series("states_captured", stage="val")
        assert val.step.tolist() == [9, 19]  # where the loggers have it too
        assert val.last[-1] == callback.snapshots["val"].value("states_captured")
        assert history.series("states_captured").step.tolist() == [4, 9, 14, 19]


class Breaks(pl.Callback):
    """An error of the user's, or Ctrl-C, at a step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 12:
            raise self.error


def test_a_run_that_fails_says_so_and_keeps_all(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    with pytest.raises(ValueError, match="a bad batch"):
        fitter = trainer(tmp_path, [callback, Breaks(ValueError("a bad batch"))])
        fitter.fit(MemoryModule(), loader(23))
    with RunHistory(stored(tmp_path)) as history:
        assert history.sessions()[0]["outcome"] == "ValueError: a bad batch"
        assert history.series("states_stored").step.tolist() == [4, 9, 11]


def test_a_run_that_is_resumed_in_its_folder_is_one_line(tmp_path: Path) -> None:
    def fit(steps: int, checkpoint: str | None = None) -> tuple[CMRMonitorCallback, pl.Trainer]:
        callback = CMRMonitorCallback(monitoring=STRICT)
        logger = CSVLogger(tmp_path / "logs", name="run", version=0)
        settings = {"max_steps": steps, "max_epochs": -1, "logger": logger}
        fitter = trainer(tmp_path, [callback], **settings)
        torch.manual_seed(0)
        fitter.fit(MemoryModule(), loader(10), ckpt_path=checkpoint)
        return callback, fitter

    _, fitter = fit(10)
    fitter.save_checkpoint(tmp_path / "at10.ckpt")
    fit(20)  # thrown away: from the start again
    callback, _ = fit(30, str(tmp_path / "at10.ckpt"))
    with RunHistory(stored(tmp_path)) as history:
        series = history.series("states_stored")
        assert series.step.tolist() == [4, 9, 14, 19, 24, 29]
        assert series.last[-1] == callback.snapshot.value("states_stored")
        assert (series.added >= 0).all() and len(history.sessions()) == 3


def test_fitting_twice_with_one_callback(tmp_path: Path, no_monitor_thread_left: None) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    for i in range(2):
        logger = TensorBoardLogger(tmp_path / str(i))
        trainer(tmp_path, [callback], logger=logger).fit(MemoryModule(), loader(12))
    for i in range(2):
        with RunHistory(stored(tmp_path / str(i))) as history:
            assert history.series("states_stored").step.tolist() == [4, 9, 11]


class Errs(MemoryModule):
    """Its memory fails now and then, at two places."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        probe = self.blocks[1].probe
        for _ in range(batch_idx % 3):
            try:
                raise KeyError(f"state {batch_idx} is gone")
            except KeyError as error:
                probe.error(error)
        if batch_idx == 7:
            probe.error(OSError("no space"))
            probe.capture(attempted=1, captured=1, stored=float("nan"))  # type: ignore[arg-type]
        return super().training_step(batch, batch_idx)


def test_errors_by_kind_layer_and_time(tmp_path: Path) -> None:
    callback = CMRMonitorCallback()
    trainer(tmp_path, [callback]).fit(Errs(), loader(20))
    with RunHistory(stored(tmp_path)) as history:
        found = {error["type"]: error for error in history.errors()}
    gone = found["KeyError"]
    assert gone["count"] == sum(i % 3 for i in range(20))
    assert (gone["layer"], gone["origin"], gone["component"]) == (LAYERS[1], "model", "model")
    assert "raise KeyError" in gone["traceback"] and gone["message"] == "'state 1 is gone'"
    assert [count for _, count in gone["over_time"]] == [4, 5, 6, 4]
    assert found["OSError"]["count"] == 1 and found["OSError"]["first_step"] == 7
    assert found["not finite"]["origin"] == "sample"
    assert "capture.stored is not finite: nan" in found["not finite"]["message"]


def test_an_alert_is_acknowledged_from_another_process(tmp_path: Path) -> None:
    told: list[str] = []
    rule = {"metric": "states_captured", "condition": ">", "thresholds": {"error": 0}}
    callback = CMRMonitorCallback(
        monitoring=STRICT,
        alerts={
            "rules": {"busy": rule},
            "alert_channels": ["mine"],
            "channels": {"mine": {"type": "callback", "function": lambda n: told.append(str(n))}},
            "alert_cooldown": 0.0,
            "escalation_rules": {
                "error": {
                    "immediate": True,
                    "then": [{"after": "15 steps", "unless": "acked", "raise_to": "critical"}],
                }
            },
        },
    )

    class Acknowledges(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 8:
                folder = str(stored(tmp_path).parent)
                command = [sys.executable, "-m", "cmr_monitor_callbacks.cli", "ack", folder]
                done = subprocess.run(
                    [*command, "busy", "--wait", "0"], capture_output=True, text=True
                )
                assert done.returncode == 1 and "it takes it at the next" in done.stderr
                unknown = subprocess.run([*command, "bsuy"], capture_output=True, text=True)
                assert unknown.returncode == 2 and "did you mean 'busy'?" in unknown.stderr

    trainer(tmp_path, [callback, Acknowledges()]).fit(MemoryModule(), loader(40))
    assert [line.split(" at ")[0] for line in told] == ["[cmr-monitor] ERROR busy"]


def test_a_plain_loop_keeps_a_history_in_memory(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    model.probe = CMRProbe(4)
    monitor = CMRPerformanceMonitor(
        {"log_every_n_steps": 1, "max_history_size": 20} | STRICT, model=model
    )
    for step in range(100):
        with monitor.track_performance():
            model.probe.capture(attempted=4, captured=4, stored=step % 4)
        if step == 50:
            monitor.mark("half way")
    steps = monitor.history.series("storage_efficiency", 4).step.tolist()
    assert steps == list(range(steps[0], 100)) and len(steps) < 40
    report = json.loads(json.dumps(monitor.generate_report(), allow_nan=False))
    assert report["marks"][0]["label"] == "half way" and report["marks"][0]["step"] == 50
    assert report["component_status"]["capture"] in ("healthy", "warning")
    assert not list(Path().glob("history.sqlite*"))
    monitor.reset_metrics()
    with pytest.raises(HistoryError, match="no window has ended yet"):
        monitor.generate_report()


def test_a_plain_loop_keeps_a_file_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "loop.sqlite"
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1} | STRICT, history={"file": str(path)})
    for _ in range(10):
        with monitor.track_performance():
            pass
    with monitor.history as history:
        assert history.series("step_time").step.tolist() == list(range(10))
        assert history.sessions()[0]["state"] == "running"
    monitor.close_history("completed")
    with RunHistory(path) as history:
        assert history.sessions()[0]["outcome"] == "completed"


def test_secrets_are_in_no_history(tmp_path: Path) -> None:
    secret = "http://127.0.0.1:9/hook?key=S3CR3T"
    callback = CMRMonitorCallback(
        monitoring=STRICT,
        alerts={
            "channels": {
                "hook": {"type": "webhook", "url": secret, "headers": {"Auth": "S3CR3T"}},
                "other": {"type": "apprise", "urls": ["json://user:S3CR3T@127.0.0.1:9"]},
            },
        },
    )
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(6))
    path = stored(tmp_path)
    assert b"S3CR3T" not in path.read_bytes()
    with RunHistory(path) as history:
        assert "**" in history.config["alerts"]["channels"]["hook"]["url"]
