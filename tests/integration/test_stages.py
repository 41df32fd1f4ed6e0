"""Stages, steps and windows: what belongs to which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, InMemorySink
from cmr_monitor_callbacks.clock import ManualClock
from tests.integration.event_files import series
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer

STRICT = {"on_monitor_error": "raise"}


def check(callback: CMRMonitorCallback, tap: Tap, stage: str) -> None:
    snapshot = callback.snapshot if stage == "train" else callback.snapshots[stage]
    assert sum(tap.of("states_captured", stage).values()) > 0
    for name in COUNTED:
        assert snapshot.layers(name) == tap.of(name, stage), (stage, name)


@pytest.mark.parametrize("tensors", [False, True], ids=["ints", "tensors"])
def test_each_stage_counts_its_own(
    tmp_path: Path, strict: CMRMonitorCallback, tensors: bool
) -> None:
    module = MemoryModule(tensors=tensors)
    tap = Tap(module)
    fitter = trainer(tmp_path, [strict], num_sanity_val_steps=2, max_epochs=2)
    fitter.fit(module, loader(12), loader(4, seed=5))
    assert sum(tap.of("states_captured", "sanity").values()) > 0
    check(strict, tap, "train")
    # the last validation alone: the tap counts both
    for name in ("states_captured", "capture_calls", "total_retrievals"):
        both = tap.of(name, "val")
        assert strict.snapshots["val"].layers(name) == {k: v / 2 for k, v in both.items()}
    assert "sanity" not in strict.snapshots
    training = strict.snapshot.value("states_captured")
    fitter.test(module, loader(3, seed=6), verbose=False)
    fitter.predict(module, loader(5, seed=7))
    check(strict, tap, "test")
    check(strict, tap, "predict")
    assert strict.snapshots["predict"].layers("total_entries") == tap.entries()
    assert strict.snapshots["predict"].value("batch_size") == 3
    assert strict.snapshot.value("states_captured") == training
    logged = series(tmp_path)
    for stage, loss in (("val", "val/loss"), ("test", "test/loss")):
        assert list(logged[f"cmr_{stage}_capture/states_captured"]) == list(logged[loss])
    captured = logged["cmr_predict_capture/states_captured"]
    assert list(captured.values()) == [sum(tap.of("states_captured", "predict").values())]


def test_what_is_recorded_in_validation_leaves_training_alone(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    module = MemoryModule()
    tap = Tap(module)
    # validation in the middle of windows, and of accumulated steps
    fitter = trainer(tmp_path, [strict], val_check_interval=3, accumulate_grad_batches=4)
    fitter.fit(module, loader(44), loader(2, seed=5))
    check(strict, tap, "train")
    assert strict.snapshot.step == 10
    assert strict.monitor.windows == 3
    assert strict.snapshot.value("batch_size") == 12
    passes = strict.snapshot.value("total_forward_time") / strict.snapshot.value("avg_latency")
    assert passes == pytest.approx(44)


def test_gauges_are_what_holds_now(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    """Validation fills the stores too: training's next window shows what is in them."""
    module = MemoryModule((6,))
    tap = Tap(module)
    entries: list[tuple[float, float]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step % 2 == 0:
                entries.append((strict.snapshot.value("total_entries"), tap.entries()[6]))

    fitter = trainer(
        tmp_path, [strict, Look()], log_every_n_steps=2, val_check_interval=1, logger=False
    )
    fitter.fit(module, loader(8), loader(2, seed=5))
    assert entries and all(shown == held for shown, held in entries)


def test_a_stage_alone(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    module = MemoryModule()
    tap = Tap(module)
    fitter = trainer(tmp_path, [strict])
    fitter.validate(module, loader(4), verbose=False)
    check(strict, tap, "val")
    fitter.test(module, loader(4), verbose=False)
    check(strict, tap, "test")
    assert strict.monitor.windows == 0
    assert strict.snapshot.step == -1
    assert not [tag for tag in series(tmp_path) if tag.startswith("cmr_capture")]


def test_two_validation_loaders_are_one_stage(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    class Two(MemoryModule):
        def validation_step(  # type: ignore[override]
            self, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            self.log("val/loss", self._loss(batch))

    module = Two()
    tap = Tap(module)
    fitter = trainer(tmp_path, [strict])
    fitter.fit(module, loader(6), [loader(2, seed=5), loader(3, seed=6)])
    check(strict, tap, "val")


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end"])
def test_an_exception_in_validation_keeps_training_clean(tmp_path: Path, hook: str) -> None:
    class Fails(MemoryModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if hook == "validation_step" and batch_idx == 1:
                raise RuntimeError("on purpose")

        def on_validation_epoch_end(self) -> None:
            if hook == "on_validation_epoch_end":
                raise RuntimeError("on purpose")

    callback = CMRMonitorCallback(monitoring=STRICT)
    module = Fails()
    tap = Tap(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(tmp_path, [callback], val_check_interval=10).fit(module, loader(20), loader(3))
    check(callback, tap, "train")
    assert callback.monitor.windows == 2  # none is begun after step 9
    assert list(series(tmp_path)["cmr_capture/states_stored"]) == [4, 9]


def test_an_exception_in_the_sanity_check_logs_nothing(tmp_path: Path) -> None:
    class Fails(MemoryModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            raise RuntimeError("on purpose")

    callback = CMRMonitorCallback(monitoring=STRICT)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(tmp_path, [callback], num_sanity_val_steps=2).fit(Fails(), loader(9), loader(3))
    assert callback.monitor.windows == 0
    assert not [tag for tag in series(tmp_path) if tag.startswith("cmr_")]


class TwoOptimizers(MemoryModule):
    """Manual optimization: each batch steps both, the second every other batch alone."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.both = both

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        first, second = self.optimizers()  # type: ignore[misc]
        for optimizer in (first, second) if self.both or batch_idx % 2 else (first,):
            optimizer.zero_grad()
            loss = self._loss(batch)
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.blocks.parameters(), lr=0.01),
            torch.optim.SGD(self.head.parameters(), lr=0.01),
        ]


@pytest.mark.parametrize("both", [True, False])
def test_with_two_optimizers_a_batch_counts_once(
    tmp_path: Path, strict: CMRMonitorCallback, both: bool
) -> None:
    module = TwoOptimizers(both)
    tap = Tap(module)
    trainer(tmp_path, [strict]).fit(module, loader(20))
    check(strict, tap, "train")
    assert strict.monitor.windows == 4
    logged = series(tmp_path)
    assert list(logged["train/loss"]) == [4, 9, 14, 19]
    assert list(logged["cmr_capture/states_stored"]) == [4, 9, 14, 19]
    assert strict.snapshot.value("batch_size") == 3


def test_windows_in_seconds(tmp_path: Path) -> None:
    clock = ManualClock(50.0)
    monitor = CMRPerformanceMonitor({**STRICT, "metric_collection_interval": 10.0}, clock=clock)
    memory = InMemorySink()
    monitor.sinks.append(memory)

    class Slow(MemoryModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            clock.advance(3.0 if batch_idx < 10 else 0.25)
            return super().training_step(batch, batch_idx)

    module = Slow()
    tap = Tap(module)
    callback = CMRMonitorCallback(monitor=monitor)
    trainer(tmp_path, [callback]).fit(module, loader(30))
    # 4 steps of 3 s, again 4, then 2 of 3 s and 16 of 0.25 s, then the partial one
    steps = [report.snapshot.step for report in memory.reports]
    assert steps == [3, 7, 25, 29]
    assert list(series(tmp_path)["cmr_capture/states_stored"]) == steps
    times = [report.snapshot.value("step_time", over="window") for report in memory.reports]
    assert times == pytest.approx([3.0, 3.0, 10 / 18, 0.25])
    assert [report.snapshot.time for report in memory.reports] == [62.0, 74.0, 84.0, 85.0]
    check(callback, tap, "train")
    assert memory in monitor.sinks  # the user's own sink stays
