"""Whatever ends a run, nothing of the monitor is left behind, and it can be used again."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from cmr_monitor_callbacks import CMRMonitorCallback, CMRProbe, InMemorySink
from tests.integration.event_files import raw_events, series, tags_of
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer

STRICT = {"on_monitor_error": "raise"}


def assert_nothing_left(callback: CMRMonitorCallback, fitter: pl.Trainer, module: Any) -> None:
    probes = [block.probe for block in module.blocks]
    assert not any(probe.attached for probe in probes)
    assert probes[0].timer().__enter__().seconds is None
    for optimizer in fitter.optimizers:
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks
    for part in module.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not part._backward_hooks
    assert not [t for t in threading.enumerate() if t.name.startswith("cmr-monitor")]
    assert callback.monitor.sinks == []


class FailsIn(MemoryModule):
    """Raises in a hook of the 8th batch."""

    def __init__(self, hook: str, error: type[BaseException]) -> None:
        super().__init__()
        self.hook, self.error = hook, error

    def _maybe(self, hook: str, batch_idx: int) -> None:
        if hook == self.hook and batch_idx == 7:
            raise self.error("on purpose")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self._maybe("training_step", batch_idx)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._maybe("on_train_batch_start", batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._maybe("on_train_batch_end", batch_idx)

    def configure_optimizers(self) -> Any:
        if self.hook == "configure_optimizers":
            raise self.error("on purpose")
        return super().configure_optimizers()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "hook",
    ["training_step", "on_train_batch_start", "on_train_batch_end", "configure_optimizers"],
)
def test_nothing_is_left_after_an_exception(
    tmp_path: Path, hook: str, error: type[BaseException]
) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = FailsIn(hook, error)
    tap = Tap(module)
    fitter = trainer(tmp_path, [callback])
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fitter.fit(module, loader(20))
    assert_nothing_left(callback, fitter, module)
    if hook != "configure_optimizers":
        # the partial window was flushed, with all that happened until then
        assert callback.snapshot.step in (6, 7)
        for name in COUNTED:
            assert callback.snapshot.layers(name) == tap.of(name), name
        assert list(series(tmp_path)["cmr_capture/states_stored"]) == [4, callback.snapshot.step]
    # and the callback can be used for another run, which knows nothing of this one
    again = MemoryModule()
    tap = Tap(again)
    trainer(tmp_path / "again", [callback]).fit(again, loader(10))
    assert callback.snapshot.step == 9
    assert callback.snapshot.layers("states_captured") == tap.of("states_captured")


def test_nothing_is_left_after_a_fit(tmp_path: Path, strict: CMRMonitorCallback) -> None:
    module = MemoryModule()
    before = {name: sorted(vars(part)) for name, part in module.named_modules()}
    fitter = trainer(tmp_path, [strict])
    fitter.fit(module, loader(7), loader(2))
    assert_nothing_left(strict, fitter, module)
    left = {name: sorted(vars(part)) for name, part in module.named_modules() if name}
    assert left == {name: attributes for name, attributes in before.items() if name}
    for run in (fitter.validate, fitter.test):
        run(module, loader(2), verbose=False)
        assert_nothing_left(strict, fitter, module)
    fitter.predict(module, loader(2))
    assert_nothing_left(strict, fitter, module)


def test_the_monitor_keeps_neither_trainer_nor_model_alive(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = MemoryModule()
    fitter = trainer(tmp_path, [callback], logger=False)
    fitter.fit(module, loader(6))
    gone = weakref.ref(module), weakref.ref(fitter)
    # Lightning itself gives every callback these methods of the module
    del module, fitter, callback.log, callback.log_dict
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert callback.snapshot.value("states_captured") > 0


def test_another_trainer_starts_new_totals_and_the_same_goes_on(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    for round_ in range(2):
        module = MemoryModule()
        tap = Tap(module)
        fitter = trainer(tmp_path / str(round_), [callback], max_epochs=1)
        fitter.fit(module, loader(7))
        assert callback.snapshot.layers("states_captured") == tap.of("states_captured")
        assert list(series(tmp_path / str(round_))["cmr_capture/states_stored"]) == [4, 6]
    fitter.fit_loop.max_epochs = 3
    fitter.fit(module, loader(7))
    for name in COUNTED:
        assert callback.snapshot.layers(name) == tap.of(name), name
    assert callback.snapshot.step == 20
    steps = list(series(tmp_path / "1")["cmr_capture/states_stored"])
    assert steps == [4, 6, 9, 14, 19, 20]


def test_going_on_with_the_same_trainer_keeps_the_score(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    scores: list[float] = []
    look = pl.callbacks.LambdaCallback(
        on_train_start=lambda trainer, _: scores.append(
            float(trainer.callback_metrics["cmr_health/score"])
        )
    )
    module = MemoryModule()
    fitter = trainer(tmp_path, [callback, look])
    fitter.fit(module, loader(20))
    assert callback.health.score < 100, "the default rules find fault with layer 6"
    fitter.fit_loop.max_epochs = 2
    fitter.fit(module, loader(20))
    assert scores[0] == 100.0
    assert scores[1] < 100.0


def test_a_second_model_shows_no_layer_of_the_first(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path / "a", [callback]).fit(MemoryModule((2, 4)), loader(6))
    trainer(tmp_path / "b", [callback]).fit(MemoryModule((3,)), loader(6))
    for name in ("states_captured", "total_entries", "error_count", "nonfinite_count"):
        assert set(callback.snapshot.layers(name)) <= {3}, name
    events = raw_events(tmp_path / "b")
    [layout] = [e for e in events if any("custom_scalars" in tag for tag in tags_of(e))]
    assert "layer_02" not in str(layout)


def test_a_users_loggers_and_sinks_still_work(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    memory = InMemorySink()
    callback.monitor.sinks.append(memory)
    logger = CSVLogger(tmp_path)
    fitter = trainer(tmp_path, [callback], logger=[logger])
    module = MemoryModule()
    fitter.fit(module, loader(7))
    assert [report.snapshot.step for report in memory.reports] == [4, 6]
    assert callback.monitor.sinks == [memory]
    logger.log_metrics({"mine": 1.0}, step=8)
    logger.save()
    assert "mine" in (Path(logger.log_dir) / "metrics.csv").read_text()
    board = pl.loggers.TensorBoardLogger(tmp_path / "board")
    fitter = trainer(tmp_path, [callback], logger=board)
    fitter.fit(module, loader(7))
    board.experiment.add_scalar("mine", 1.0, 8)
    board.experiment.flush()
    assert series(tmp_path / "board")["mine"] == {8: 1.0}


def test_a_copy_of_a_model_in_training_is_not_watched(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    class Copies(pl.Callback):
        """What an average of weights does."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            block = copy.deepcopy(module.blocks[0])
            assert isinstance(block.probe, CMRProbe)
            assert not block.probe.attached
            block(torch.randn(3, 8), torch.tensor([0, 2, 4]))

    module = MemoryModule()
    fitter = trainer(tmp_path, [strict, Copies()], logger=False)
    fitter.fit(module, loader(10))
    assert strict.snapshot.layers("capture_calls") == {2: 10.0, 4: 10.0, 6: 10.0}


def test_a_learning_rate_search_before_the_run_is_not_counted(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = MemoryModule()
    module.lr = 1e-3
    fitter = trainer(tmp_path, [callback], logger=False, enable_checkpointing=True)
    pl.tuner.Tuner(fitter).lr_find(module, loader(20), num_training=10, update_attr=False)
    module = MemoryModule()
    tap = Tap(module)
    fitter.fit(module, loader(12))
    assert callback.snapshot.layers("states_captured") == tap.of("states_captured")
    assert callback.snapshot.step == 11
