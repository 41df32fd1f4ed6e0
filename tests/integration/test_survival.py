"""Kills, exceptions, checkpoints and second fits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.memory_model import LAYERS, MemoryModule, loader, trainer

ROOT = Path(__file__).resolve().parents[2]
STRICT = {"on_monitor_error": "raise"}
COUNTERS = (
    "states_considered",
    "states_attempted",
    "states_captured",
    "states_stored",
    "capture_calls",
    "reconstruction_calls",
    "total_reconstructions",
    "total_entries",
    "capacity",
    "eviction_count",
    "total_retrievals",
    "entries_retrieved",
    "cache_hits",
    "error_count",
)
ENDLESS = """
import sys
from cmr_monitor_callbacks import CMRMonitorCallback
from tests.memory_model import MemoryModule, loader, trainer
import pytorch_lightning as pl

class Say(pl.Callback):
    def on_train_batch_start(self, trainer, *args):
        print(trainer.global_step, flush=True)

fitter = trainer(sys.argv[1], [CMRMonitorCallback(), Say()], max_epochs=100000)
fitter.fit(MemoryModule(), loader(50))
"""


def totals(callback: CMRMonitorCallback) -> dict[str, Any]:
    snapshot = callback.snapshot
    return {name: (snapshot.value(name), snapshot.layers(name)) for name in COUNTERS}


@pytest.mark.parametrize("until", [23, 58, 104])
def test_a_killed_run_lacks_at_most_the_last_window(tmp_path: Path, until: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    last = -1
    for line in child.stdout:
        if line.strip().isdigit():
            last = int(line)
        if last >= until:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    [folder] = tmp_path.glob("lightning_logs/*/")
    reader = EventAccumulator(str(folder))
    reader.Reload()
    steps = [e.step for e in reader.Scalars("cmr_capture/states_stored/layer_04")]
    assert steps == list(range(4, steps[-1] + 1, 5))
    ended = 5 * (last // 5) - 1  # the last window that had ended when the child said its last step
    assert steps[-1] >= ended - 5


class SaveAt(pl.Callback):
    """Saves a checkpoint after a step, wherever in a window that is."""

    def __init__(self, step: int, path: Path, *, in_validation: bool = False) -> None:
        self.step, self.path, self.in_validation = step, path, in_validation

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.in_validation:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and self.in_validation:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [1, 3, 4, 5, 6, 9, 10, 13])
def test_a_resumed_run_has_the_totals_of_an_uninterrupted_one(tmp_path: Path, step: int) -> None:
    path = tmp_path / "at.ckpt"
    whole = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [whole, SaveAt(step, path)], max_epochs=2).fit(MemoryModule(), loader(9))
    resumed = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [resumed], max_epochs=2).fit(MemoryModule(), loader(9), ckpt_path=path)
    assert totals(resumed) == totals(whole)
    assert resumed.snapshot.step == whole.snapshot.step == 17
    assert resumed.monitor.windows == whole.monitor.windows


def test_a_checkpoint_made_in_validation_resumes_too(tmp_path: Path) -> None:
    path = tmp_path / "at.ckpt"
    whole = CMRMonitorCallback(monitoring=STRICT)
    settings: dict[str, Any] = {"max_epochs": 1, "val_check_interval": 8}
    trainer(tmp_path, [whole, SaveAt(8, path, in_validation=True)], **settings).fit(
        MemoryModule(), loader(16), loader(2)
    )
    resumed = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [resumed], **settings).fit(
        MemoryModule(), loader(16), loader(2), ckpt_path=path
    )
    assert totals(resumed) == totals(whole)


def test_the_state_in_a_checkpoint_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "at.ckpt"
    callback = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [callback, SaveAt(7, path)]).fit(MemoryModule(), loader(9))
    saved = torch.load(path, weights_only=True)
    assert saved["callbacks"]["CMRMonitorCallback"]["step"] == 6


def test_two_fits_with_one_callback(tmp_path: Path) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    for _ in range(2):  # another Trainer: new totals
        trainer(tmp_path, [callback]).fit(MemoryModule(), loader(10))
        assert callback.snapshot.value("states_captured") == 3 * 3 * 10
    fitter = trainer(tmp_path, [callback], max_epochs=1)
    module = MemoryModule()
    fitter.fit(module, loader(10))
    fitter.fit_loop.max_epochs = 2  # the same Trainer, further: the totals go on
    fitter.fit(module, loader(10))
    assert callback.snapshot.value("states_captured") == 3 * 3 * 20
    assert callback.snapshot.step == 19


class FailsAt(pl.Callback):
    """Raises in the middle of a run."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 7:
            raise self.error("on purpose")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_nothing_is_left_behind(
    tmp_path: Path, error: type[BaseException]
) -> None:
    callback = CMRMonitorCallback(monitoring=STRICT)
    module = MemoryModule()
    fitter = trainer(tmp_path, [callback, FailsAt(error)])
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fitter.fit(module, loader(20))
    assert callback.snapshot.step == 6  # the partial window was flushed
    assert not any(block.probe.attached for block in module.blocks)
    assert not [t for t in threading.enumerate() if t.name.startswith("cmr-monitor")]
    for optimizer in fitter.optimizers:
        assert not optimizer._optimizer_step_post_hooks
    trainer(tmp_path, [callback]).fit(MemoryModule(), loader(10))
    assert callback.snapshot.value("states_captured") == 3 * 3 * 10


def test_after_a_fit_the_model_is_as_before(tmp_path: Path) -> None:
    module = MemoryModule()
    before = {name: dict(vars(m)) for name, m in module.named_modules() if "head" in name}
    keys = list(module.state_dict())
    trainer(tmp_path, [CMRMonitorCallback(monitoring=STRICT)]).fit(module, loader(6))
    assert list(module.state_dict()) == keys
    assert not any(block.probe.attached for block in module.blocks)
    after = {name: dict(vars(m)) for name, m in module.named_modules() if "head" in name}
    assert before.keys() == after.keys()
    assert all(not m._forward_hooks for m in module.modules())


def test_a_million_steps_take_no_memory() -> None:
    import resource

    from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe

    module = torch.nn.Module()
    module.probes = [CMRProbe(layer) for layer in LAYERS]
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 500}, model=module)

    def steps(count: int) -> None:
        for _ in range(count):
            for probe in module.probes:
                probe.capture(64, 60, 55, 0.001)
                probe.buffer(900, 1024, 460800, 5)
            monitor.record_step(0.01, 0.001, 0.004, 0.004, 0.002, 0.0001, 1, 16, 2048)
            monitor.step()

    steps(20_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps(980_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert monitor.snapshot.value("states_captured") == 3 * 60 * 1_000_000
    assert grown < 4096  # KiB
