"""A real Trainer, a real model, an independent count, and event files read back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from cmr_monitor_callbacks import CMRMonitorCallback, MonitorFailure
from tests.memory_model import LAYERS, MemoryModule, Tap, loader, trainer

STRICT = {"on_monitor_error": "raise"}
LAYER_TAGS = {
    "states_captured": "cmr_capture/states_captured",
    "states_stored": "cmr_capture/states_stored",
    "eviction_count": "cmr_buffer/eviction_count",
    "total_entries": "cmr_buffer/total_entries",
    "total_reconstructions": "cmr_reconstruction/total_reconstructions",
}


def events_of(root: Path) -> Path:
    [path] = root.glob("lightning_logs/*/events*")
    return path


def scalars(root: Path) -> EventAccumulator:
    [folder] = root.glob("lightning_logs/*/")
    reader = EventAccumulator(str(folder))  # a fit and a test after it write a file each
    reader.Reload()
    return reader


class AtWindows(pl.Callback):
    """Notes what the tap has counted at the end of each window."""

    def __init__(self, tap: Tap, window: int) -> None:
        self.tap, self.window = tap, window
        self.noted: dict[int, dict[str, dict[int, int]]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step % self.window == 0:
            self.noted[trainer.global_step - 1] = self.tap.counts()


def test_the_event_file_holds_what_an_independent_tap_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = MemoryModule()
    tap = Tap(module, monkeypatch)
    windows = AtWindows(tap, 5)
    trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT), windows]).fit(module, loader(20))
    reader = scalars(tmp_path)
    assert list(windows.noted) == [4, 9, 14, 19]
    for metric, tag in LAYER_TAGS.items():
        for layer in LAYERS:
            logged = {e.step: e.value for e in reader.Scalars(f"{tag}/layer_{layer:02d}")}
            assert logged == {step: n[metric][layer] for step, n in windows.noted.items()}
    for layer in LAYERS:
        share = reader.Scalars(f"cmr_capture/storage_efficiency/layer_{layer:02d}")
        used = reader.Scalars(f"cmr_buffer/utilization_rate/layer_{layer:02d}")
        seconds = reader.Scalars(f"cmr_reconstruction/avg_reconstruction_time/layer_{layer:02d}")
        assert [e.value for e in share] == pytest.approx([0.8] * 4)
        held = [n["total_entries"][layer] / (4 * layer) for n in windows.noted.values()]
        assert [e.value for e in used] == pytest.approx(held)
        assert all(0 < e.value < 1 for e in seconds)


def test_a_window_is_one_event_on_lightnings_own_axis(tmp_path: Path) -> None:
    trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT)]).fit(MemoryModule(), loader(20))
    events = list(LegacyEventFileLoader(str(events_of(tmp_path))).Load())
    ours = [e for e in events if any(v.tag.startswith("cmr_") for v in e.summary.value)]
    theirs = [e for e in events if any(v.tag == "train/loss" for v in e.summary.value)]
    assert [e.step for e in ours] == [e.step for e in theirs] == [4, 9, 14, 19]
    assert all(len(e.summary.value) <= 150 for e in ours)
    layouts = [v for e in events for v in e.summary.value if "custom_scalars" in v.tag]
    assert len(layouts) == 1


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize(
    ("settings", "compiled"),
    [
        ({}, False),
        ({"accumulate_grad_batches": 4}, False),
        ({"precision": "bf16-mixed"}, False),
        ({}, True),
    ],
    ids=["eager", "accumulation of 4", "bf16", "compiled"],
)
def test_loss_weights_and_random_states_are_bitwise_equal(
    tmp_path: Path, settings: dict[str, Any], compiled: bool
) -> None:
    def run(callbacks: list[Any]) -> tuple[Any, ...]:
        pl.seed_everything(3, verbose=False)
        module = MemoryModule(tensors=False)
        if compiled:
            module.head.compile()
            for block in module.blocks:
                block.linear.compile()
        steps = 50 * settings.get("accumulate_grad_batches", 1)
        trainer(tmp_path, callbacks, **settings).fit(module, loader(steps, shuffle=True))
        return module.losses, [p.detach().clone() for p in module.parameters()], states()

    losses, weights, random_states = run([])
    callback = CMRMonitorCallback(monitoring=STRICT)
    other_losses, other_weights, other_random_states = run([callback])
    assert callback.monitor.windows == 10
    assert losses == other_losses
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert random_states == other_random_states


@pytest.mark.parametrize("recompute", ["", "reentrant", "not reentrant"])
@pytest.mark.parametrize("tensors", [False, True], ids=["ints", "tensors"])
def test_a_recompute_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: str, tensors: bool
) -> None:
    module = MemoryModule(recompute=recompute, tensors=tensors)
    tap = Tap(module, monkeypatch)
    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [callback], logger=False).fit(module, loader(12))
    for metric, counted in tap.counts().items():
        assert callback.snapshot.layers(metric) == counted
    assert callback.snapshot.value("capture_calls") == 3 * 12
    assert callback.snapshot.value("total_retrievals") == 3 * 12


def test_stages_are_kept_apart_and_the_sanity_check_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(tmp_path, [callback], num_sanity_val_steps=2, val_check_interval=10)
    module = MemoryModule()
    fitter.fit(module, loader(20), loader(4))
    assert callback.snapshot.value("states_captured") == 3 * 3 * 20
    assert callback.snapshots["val"].value("states_captured") == 3 * 3 * 4
    fitter.test(module, loader(2), verbose=False)
    fitter.predict(module, loader(5))
    assert callback.snapshots["test"].value("states_captured") == 3 * 3 * 2
    assert callback.snapshots["predict"].value("states_captured") == 3 * 3 * 5
    assert callback.snapshot.value("states_captured") == 3 * 3 * 20
    logged = scalars(tmp_path)
    assert [e.step for e in logged.Scalars("cmr_val_capture/states_captured")] == [9, 19]


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(tmp_path, [callback], accumulate_grad_batches=4)
    fitter.fit(MemoryModule(), loader(40))
    assert callback.monitor.windows == 2
    assert callback.snapshot.step == 9
    assert callback.snapshot.value("states_captured") == 3 * 3 * 40
    assert callback.snapshot.value("batch_size") == 12
    assert callback.monitor._ledger.train.run.samples[:, 0].max() >= 10


def test_a_batch_that_is_skipped_leaves_nothing_behind(tmp_path: Path) -> None:
    class Skips(MemoryModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None  # Lightning skips the rest of the epoch

    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [callback], max_epochs=3).fit(Skips(), loader(6))
    snapshot = callback.snapshot
    assert snapshot.value("batch_size") == 3
    assert snapshot.value("states_captured") == 3 * 3 * 9
    passes = snapshot.value("total_forward_time") / snapshot.value("avg_latency")
    assert passes == pytest.approx(9)


@pytest.mark.parametrize(
    "settings",
    [{"logger": False}, {"fast_dev_run": 3}, {"barebones": True}, {"log_every_n_steps": 0}],
    ids=lambda s: next(iter(s)),
)
def test_trainers_that_log_little(tmp_path: Path, settings: dict[str, Any]) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    if "barebones" in settings:
        fitter = pl.Trainer(barebones=True, accelerator="cpu", max_epochs=1, callbacks=[callback])
    else:
        fitter = trainer(tmp_path, [callback], **settings)
    fitter.fit(MemoryModule(), loader(12))
    batches = 3 if "fast_dev_run" in settings else 12
    assert callback.snapshot.value("states_captured") == 3 * 3 * batches
    files = list(tmp_path.glob("lightning_logs/*/events*"))
    if files:
        tags = scalars(tmp_path).Tags()["scalars"]
        assert not [tag for tag in tags if tag.startswith("cmr_")]


def test_early_stopping_and_checkpoints_can_watch_the_health(tmp_path: Path) -> None:
    stop = pl.callbacks.EarlyStopping("cmr_health/score", mode="max", patience=3)
    best = pl.callbacks.ModelCheckpoint(
        tmp_path / "best", monitor="cmr_capture/storage_efficiency", mode="max"
    )
    callback = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(
        tmp_path,
        [callback, stop, best],
        max_epochs=12,
        log_every_n_steps=50,  # an epoch is shorter than a window
        enable_checkpointing=True,
        num_sanity_val_steps=2,
    )
    fitter.fit(MemoryModule(), loader(6), loader(2))
    assert float(fitter.callback_metrics["cmr_health/score"]) == 100.0
    assert fitter.current_epoch < 12  # the score did not improve, so it stopped
    assert stop.stopped_epoch > 0


def test_several_loggers_get_one_call_for_each_window(tmp_path: Path) -> None:
    csv = pl.loggers.CSVLogger(tmp_path / "csv")
    board = pl.loggers.TensorBoardLogger(tmp_path / "board")
    trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT)], logger=[csv, board]).fit(
        MemoryModule(), loader(10)
    )
    lines = (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()
    stored = lines[0].split(",").index("cmr_capture/states_stored/layer_04")
    values = [float(v) for line in lines[1:] if (v := line.split(",")[stored])]
    reader = EventAccumulator(board.log_dir)
    reader.Reload()
    assert values == [e.value for e in reader.Scalars("cmr_capture/states_stored/layer_04")]
    assert values == [12.0, 24.0]


class Broken(pl.loggers.CSVLogger):
    """A logger that fails on the monitor's numbers."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("cmr_") for name in metrics):
            raise OSError("disk full")


def test_a_logger_that_fails_does_not_end_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CMRMonitorCallback()
    trainer(tmp_path, [callback], logger=Broken(tmp_path)).fit(MemoryModule(), loader(20))
    assert callback.monitor.failures == 4
    assert callback.snapshot.value("states_captured") == 3 * 3 * 20
    assert caplog.text.count("the monitor failed in LoggerSink") == 1
    with pytest.raises(MonitorFailure, match="disk full"):
        trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT)], logger=Broken(tmp_path)).fit(
            MemoryModule(), loader(20)
        )
