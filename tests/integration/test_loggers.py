"""Every kind of logger, none at all, and those that fail."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from cmr_monitor_callbacks import CMRMonitorCallback, MonitorFailure
from tests.integration.event_files import series
from tests.integration.tap import Tap
from tests.models import MemoryModule, loader, trainer
from tests.needed import needed

STRICT = {"on_monitor_error": "raise"}
STORED = "cmr_capture/states_stored/layer_02"


def csv_series(logger: CSVLogger, tag: str) -> dict[int, float]:
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row[tag]) for row in csv.DictReader(file) if row[tag]}


def test_tensorboard_and_csv_hold_the_same_numbers(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    table, board = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")
    module = MemoryModule()
    tap = Tap(module)
    trainer(tmp_path, [strict], logger=[table, board]).fit(module, loader(12), loader(3))
    logged = series(tmp_path / "board")
    assert list(logged[STORED]) == [4, 9, 11]
    assert logged[STORED][11] == tap.of("states_stored")[2]
    with open(Path(table.log_dir) / "metrics.csv", newline="") as file:
        names = {name for name in next(csv.reader(file)) if name.startswith("cmr_")}
    assert names == {tag for tag in logged if tag.startswith("cmr_")}
    assert any(name.startswith("cmr_val_") for name in names)
    for tag in names:
        assert csv_series(table, tag) == pytest.approx(logged[tag], rel=1e-6), tag


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    """Weights & Biases, which sends nothing and writes nothing outside the test's folder."""
    needed("wandb")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return WandbLogger(save_dir=tmp_path / "wandb", offline=True)


def test_tensorboard_csv_and_wandb_hold_the_same_numbers(
    tmp_path: Path, strict: CMRMonitorCallback, wandb: WandbLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one fit; each is called once for a window, and once for a validation."""
    calls: dict[str, list[dict[int | None, dict[str, float]]]] = {}

    def overheard(logger: Logger) -> Logger:
        log, heard = logger.log_metrics, calls.setdefault(type(logger).__name__, [])

        def log_metrics(metrics: dict[str, float], step: int | None = None) -> None:
            ours = {tag: float(value) for tag, value in metrics.items() if tag.startswith("cmr_")}
            if ours:
                heard.append({step: ours})
            log(metrics, step)

        monkeypatch.setattr(logger, "log_metrics", log_metrics)
        return logger

    table, board = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")
    module = MemoryModule()
    tap = Tap(module)
    fitter = trainer(tmp_path, [strict], logger=[overheard(one) for one in (board, wandb, table)])
    fitter.fit(module, loader(12), loader(2))
    logged = {tag: by for tag, by in series(tmp_path / "board").items() if tag.startswith("cmr_")}
    assert list(logged[STORED]) == [4, 9, 11]
    assert logged[STORED][11] == tap.of("states_stored")[2]

    assert [step for call in calls["WandbLogger"] for step in call] == [4, 9, 11, 11]
    assert calls["CSVLogger"] == calls["WandbLogger"]
    given = {(tag, step) for call in calls["WandbLogger"] for step in call for tag in call[step]}
    assert given == {(tag, step) for tag, by_step in logged.items() for step in by_step}
    for tag, by_step in logged.items():
        assert csv_series(table, tag) == pytest.approx(by_step, rel=1e-6), tag
        assert wandb.experiment.summary[tag] == pytest.approx(by_step[max(by_step)], rel=1e-6), tag
    wandb.experiment.finish()


def test_mlflow(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: see tests/requirements.txt")
    from pytorch_lightning.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db")
    module = MemoryModule()
    tap = Tap(module)
    trainer(tmp_path, [strict], logger=logger).fit(module, loader(10))
    history = logger.experiment.get_metric_history(logger.run_id, STORED)
    assert [point.step for point in history] == [4, 9]
    assert history[-1].value == tap.of("states_stored")[2]


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        ({"logger": False}, 12),
        ({"fast_dev_run": 3}, 1),
        ({"barebones": True}, 2),
        ({"log_every_n_steps": 0}, 2),
        ({"log_every_n_steps": 0, "logger": False}, 2),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else str(value),
)
def test_trainers_that_log_little(
    tmp_path: Path, strict: CMRMonitorCallback, settings: dict[str, Any], windows: int
) -> None:
    module = MemoryModule()
    tap = Tap(module)
    if "barebones" in settings:
        fitter = pl.Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=[strict])
    else:
        fitter = trainer(tmp_path, [strict], **settings)
    fitter.fit(module, loader(60), loader(2))
    assert strict.snapshot.layers("states_stored") == tap.of("states_stored")
    assert strict.monitor.windows == windows
    assert strict.snapshot.step == (2 if "fast_dev_run" in settings else 59)
    if list(tmp_path.rglob("events*")):
        assert not [tag for tag in series(tmp_path) if tag.startswith("cmr")]
        assert settings == {"log_every_n_steps": 0}
    if "fast_dev_run" not in settings and "barebones" not in settings:
        assert float(fitter.callback_metrics["cmr_capture/states_stored"]) > 0


def test_the_callbacks_own_window_goes_before_the_trainers(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring={**STRICT, "log_every_n_steps": 3})
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(10))
    logged = series(tmp_path)
    assert list(logged[STORED]) == [2, 5, 8, 9]
    assert list(logged["train/loss"]) == [4, 9]


def test_sinks_can_be_switched_off(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(
        monitoring=STRICT, sinks={"loggers": False, "callback_metrics": False}
    )
    fitter = trainer(tmp_path, [callback])
    fitter.fit(MemoryModule(), loader(10))
    assert not [tag for tag in series(tmp_path) if tag.startswith("cmr")]
    assert not [name for name in fitter.callback_metrics if name.startswith("cmr")]
    assert callback.snapshot.value("states_stored") > 0


class Broken(CSVLogger):
    """Fails on the monitor's numbers, and on nothing else."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("cmr_") for name in metrics):
            raise OSError("disk full")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_is_counted_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CMRMonitorCallback()
    board, broken = TensorBoardLogger(tmp_path / "board"), Broken(tmp_path / "csv")
    module = MemoryModule()
    tap = Tap(module)
    trainer(tmp_path, [callback], logger=[broken, board]).fit(module, loader(20))
    assert callback.monitor.failures == 4
    assert callback.snapshot.value("states_stored") == sum(tap.of("states_stored").values())
    logged = series(tmp_path / "board")
    assert list(logged[STORED]) == [4, 9, 14, 19]
    # a window shows the failures before it
    assert list(logged["cmr_monitor/failures"].values()) == [0, 1, 2, 3]
    assert caplog.text.count("disk full") <= 3 and "LoggerSink" in caplog.text
    assert list(csv_series(broken, "train/loss")) == [4, 9, 14, 19]
    assert sum("disk full" in text for text in callback.monitor.error_log) == 4


def test_a_failing_logger_ends_a_strict_run(tmp_path: Path, no_monitor_thread_left: None) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = MemoryModule()
    with pytest.raises(MonitorFailure, match="disk full"):
        trainer(tmp_path, [callback], logger=Broken(tmp_path)).fit(module, loader(20))
    assert not any(block.probe.attached for block in module.blocks)


class CannotSave(CSVLogger):
    """Takes numbers but fails to save them at the end of training."""

    at_the_end = False

    def save(self) -> None:
        if self.at_the_end:
            raise OSError("read-only file system")


def test_a_logger_that_cannot_save_keeps_no_other_from_saving(tmp_path: Path) -> None:
    saved: list[bool] = []

    class Saves(CSVLogger):
        def save(self) -> None:
            saved.append(broken.at_the_end)

    class AtTheEnd(pl.Callback):
        """Around the monitor's last flush: Lightning's own saves come before and after."""

        def on_train_epoch_end(self, *args: Any) -> None:
            broken.at_the_end = True

        def on_train_end(self, *args: Any) -> None:
            broken.at_the_end = False

    callback = CMRMonitorCallback()
    broken, other = CannotSave(tmp_path / "broken"), Saves(tmp_path / "other")
    fitter = trainer(tmp_path, [callback, AtTheEnd()], logger=[broken, other])
    fitter.fit(MemoryModule(), loader(7))
    assert callback.monitor.failures == 1
    assert any(saved)


class FullDisk(TensorBoardLogger):
    """A writer whose flush fails, as on a full disk."""

    @property
    def experiment(self) -> Any:
        writer = super().experiment

        def flush() -> None:
            raise OSError("no space left")

        writer.flush = flush
        return writer


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_counted_and_training_goes_on(
    tmp_path: Path, no_monitor_thread_left: None
) -> None:
    callback = CMRMonitorCallback()
    board = FullDisk(tmp_path / "board")
    board.save = lambda: None  # type: ignore[method-assign]
    board.finalize = lambda status: None  # type: ignore[method-assign]
    module = MemoryModule()
    trainer(tmp_path, [callback], logger=board).fit(module, loader(20))
    assert callback.snapshot.step == 19
    assert callback.monitor.failures > 0
    assert any("no space left" in text for text in callback.monitor.error_log)
