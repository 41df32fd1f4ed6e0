"""The machine in real Trainers: event files, the history and what is exported are read back."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import (
    CMRMonitorCallback,
    ConfigError,
    ResourceMonitorCallback,
    RunHistory,
)
from cmr_monitor_callbacks.reports.page import to_html
from cmr_monitor_callbacks.reports.tables import export
from cmr_monitor_callbacks.resources import ResourceWatch
from tests.integration.event_files import series
from tests.models import MemoryModule, loader, trainer

OFTEN = {"interval": "100ms"}
HOST = ("cpu_percent", "process_rss_mb", "host_memory_percent", "disk_free_mb")
NAME = "cmr-monitor-resources"


class Waits(pl.Callback):
    """Holds the run at a step until the machine was sampled so many times more."""

    def __init__(self, watch: ResourceWatch, samples: int = 3, steps: tuple[int, ...] = (1,)):
        self.watch, self.samples, self.steps = watch, samples, steps
        self.seen: set[str] = set()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step in self.steps:
            self._wait()

    def on_test_batch_start(self, *args: Any) -> None:
        self._wait()

    def _wait(self) -> None:
        more = threading.Event()
        taken = [0]
        look = self.watch.look

        def looked(readers: Any) -> bool:
            done = look(readers)
            taken[0] += done
            if taken[0] >= self.samples:
                more.set()
            return done

        self.watch.look = looked  # type: ignore[method-assign]
        self.seen |= {thread.name for thread in threading.enumerate()}
        assert more.wait(60.0), "nothing was sampled"
        del self.watch.look


class Plain(pl.LightningModule):
    """A model without any memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch[0]).mean()

    def test_step(self, batch: Any, index: int) -> None:
        self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def numbers(batches: int = 12) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(2 * batches, 4)), batch_size=2)


def fitter(root: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    given = {
        "logger": pl.loggers.TensorBoardLogger(str(root), name="", version=""),
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 4,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **settings,
    }
    return pl.Trainer(default_root_dir=str(root), callbacks=list(callbacks), **given)


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_a_run_logs_and_keeps_what_was_sampled(tmp_path: Path) -> None:
    ours = CMRMonitorCallback(
        monitoring={"log_every_n_steps": 4, "on_monitor_error": "raise"}, resources=OFTEN
    )
    waits = Waits(ours.monitor.resources)
    logger = pl.loggers.TensorBoardLogger(str(tmp_path), name="", version="")
    trainer(tmp_path, [ours, waits], logger=logger).fit(MemoryModule(), loader(48))
    assert NAME in waits.seen
    found = series(tmp_path)
    assert {f"cmr_resources/{name}" for name in HOST} <= set(found)
    assert 10 < found["cmr_resources/process_rss_mb"][3] < 100_000
    assert found["cmr_health/resources_status"][3] == 1.0
    assert not [tag for tag in found if tag.startswith("cmr_resources/gpu")]
    with RunHistory(tmp_path) as history:
        kept = {key.name for key in history.list_series("resources")}
        assert kept == set(HOST)
        rss = history.series("process_rss_mb", stage="resources")
        assert len(rss) >= 3
        assert (rss.time[1:] > rss.time[:-1]).all()
        assert (rss.step[1:] >= rss.step[:-1]).all()
        by_window = history.series("process_rss_mb")
        first = rss.value[rss.time <= by_window.time[0]]
        assert by_window.value[0] == pytest.approx(first.mean())
        assert history.series("process_rss_mb_max").value[0] == first.max()
        assert history.sessions()[0]["config"]["resources"]["interval"] == 0.1
        paths = {path.stem: path for path in export(history, tmp_path / "csv")}
        page = to_html(history)
    with paths["resources"].open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["process_rss_mb"]) for row in rows] == rss.value.tolist()
    assert "Of rank 0&#x27;s machine, sample by sample." in page
    assert "process_rss_mb" in page and "time (UTC)" in page
    report = ours.monitor.generate_report(None)
    json.dumps(report, allow_nan=False)
    told = report["resources"]["process_rss_mb"]
    assert told["samples"] == len(rss)
    assert told["max"] == rss.value.max()
    assert told["unit"] == "MiB"
    assert report["component_status"]["resources"] == "healthy"


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_any_run_logs_its_machine(tmp_path: Path) -> None:
    ours = ResourceMonitorCallback(OFTEN)
    csv_logger = pl.loggers.CSVLogger(str(tmp_path / "csv"), name="", version="")
    board = pl.loggers.TensorBoardLogger(str(tmp_path / "board"), name="", version="")
    waits = Waits(ours._watch, steps=(1, 9))
    fit = fitter(tmp_path, ours, waits, logger=[board, csv_logger])
    fit.fit(Plain(), numbers(10))
    assert NAME in waits.seen
    found = series(tmp_path / "board")
    expected = {f"cmr_resources/{name}" for name in HOST}
    assert expected <= set(found)
    for name in HOST:
        assert set(found[f"cmr_resources/{name}"]) == {3, 7, 9}
    assert set(HOST) <= set(ours.values)
    assert ours.values["process_rss_mb"] == pytest.approx(
        found["cmr_resources/process_rss_mb"][9], rel=1e-6
    )
    [path] = (tmp_path / "csv").rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows if row["cmr_resources/process_rss_mb"]} == {3, 7, 9}


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_a_test_alone_is_logged_at_its_end(tmp_path: Path) -> None:
    ours = ResourceMonitorCallback(OFTEN)
    fit = fitter(tmp_path, ours, Waits(ours._watch, samples=2))
    fit.test(Plain(), numbers(2), verbose=False)
    assert set(series(tmp_path)["cmr_resources/process_rss_mb"]) == {0}


@pytest.mark.usefixtures("no_monitor_thread_left")
@pytest.mark.parametrize(
    "settings", [{"logger": False}, {"fast_dev_run": 2}, {"log_every_n_steps": 0}]
)
def test_runs_that_log_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    ours = ResourceMonitorCallback(OFTEN)
    theirs = CMRMonitorCallback(monitoring={"on_monitor_error": "raise"}, resources=OFTEN)
    fitter(tmp_path, ours, theirs, **settings).fit(Plain(), numbers())
    assert not ours._watch.running


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_barebones(tmp_path: Path) -> None:
    ours = ResourceMonitorCallback(OFTEN)
    pl.Trainer(barebones=True, max_steps=2, callbacks=[ours], accelerator="cpu").fit(
        Plain(), numbers()
    )
    assert not ours._watch.running


class Breaks(Plain):
    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        raise RuntimeError("this model is broken")


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_an_exception_ends_the_thread(tmp_path: Path) -> None:
    ours, theirs = ResourceMonitorCallback(OFTEN), CMRMonitorCallback(resources=OFTEN)
    with pytest.raises(RuntimeError, match="this model is broken"):
        fitter(tmp_path, ours, theirs).fit(Breaks(), numbers())
    assert not ours._watch.running
    assert not theirs.monitor.resources.running


class Deaf(pl.loggers.CSVLogger):
    """Its disk is full."""

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        raise OSError("no space left on device")


def test_a_logger_that_fails_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = ResourceMonitorCallback(OFTEN)
    fit = fitter(tmp_path, ours, Waits(ours._watch), logger=Deaf(str(tmp_path)))
    fit.fit(Plain(), numbers())
    said = [record.message for record in caplog.records if "no space left" in record.message]
    assert len(said) == 1
    assert fit.global_step == 12


@pytest.mark.parametrize("wrong", [{"intervall": 1}, 5, {"interval": -1}])
def test_bad_input_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="resources"):
        ResourceMonitorCallback(wrong)
    with pytest.raises(ConfigError, match="resources"):
        CMRMonitorCallback(resources=wrong)


@pytest.mark.usefixtures("no_monitor_thread_left")
def test_switched_off_there_is_nothing(tmp_path: Path) -> None:
    ours = CMRMonitorCallback(
        monitoring={"log_every_n_steps": 4, "on_monitor_error": "raise"},
        resources={"enabled": False},
    )
    logger = pl.loggers.TensorBoardLogger(str(tmp_path), name="", version="")
    trainer(tmp_path, [ours], logger=logger).fit(MemoryModule(), loader(16))
    assert not [tag for tag in series(tmp_path) if "resources" in tag]
    with RunHistory(tmp_path) as history:
        assert history.list_series("resources") == []
    assert ours.monitor.generate_report(None)["resources"] == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.usefixtures("no_monitor_thread_left")
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    ours = CMRMonitorCallback(
        monitoring={"log_every_n_steps": 4, "on_monitor_error": "raise"}, resources=OFTEN
    )
    fit = fitter(tmp_path, ours, Waits(ours.monitor.resources), accelerator="gpu", devices=1)
    fit.fit(Plain(), numbers())
    found = series(tmp_path)
    for name in ("gpu_memory_used_mb", "gpu_memory_percent", "gpu_temperature"):
        assert found[f"cmr_resources/{name}"][3] > 0
    assert ours.snapshot.value("gpu_reserved_mb") > 0
