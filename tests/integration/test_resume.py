"""Killed runs, and checkpoints made anywhere: no count is lost, none comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.integration.event_files import run_folder, series
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer

TABLE = list(loader(40))

ROOT = Path(__file__).resolve().parents[2]
STRICT = {"on_monitor_error": "raise"}
CHILD = """
import sys
import pytorch_lightning as pl
from cmr_monitor_callbacks import CMRMonitorCallback
from tests.models import MemoryModule, loader, trainer

class Says(pl.Callback):
    def on_train_batch_end(self, trainer, *args):
        print("step", trainer.global_step - 1, flush=True)

fitter = trainer(sys.argv[1], [CMRMonitorCallback(), Says()], max_epochs=-1)
fitter.fit(MemoryModule((2, 4)), loader(50))
"""


@pytest.mark.parametrize("until", [10, 59, 103])
def test_a_killed_run_lacks_at_most_the_last_window(tmp_path: Path, until: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    said = -1
    for line in child.stdout:
        word, _, number = line.partition(" ")
        said = int(number) if word == "step" else said
        if said >= until:
            break
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().split("\n")  # what it said before it died
    child.wait()
    # the last line may be cut short
    last = max([said, *(int(line.split()[1]) for line in rest[:-1] if line.startswith("step"))])
    reader = EventAccumulator(str(run_folder(tmp_path)), size_guidance={"scalars": 0})
    reader.Reload()
    steps = [event.step for event in reader.Scalars("cmr_capture/states_stored/layer_04")]
    assert steps == list(range(4, steps[-1] + 1, 5))
    last_ended = (last + 1) // 5 * 5 - 1
    assert last_ended - 5 <= steps[-1] <= last + 5


class Module(MemoryModule):
    """Trains on the batch of its number: resuming in an epoch, Lightning begins the loader anew."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(TABLE[batch_idx], batch_idx)


def totals(callback: CMRMonitorCallback) -> dict[str, Any]:
    """Every count and gauge, in the whole and by layer, and where the run stands."""
    snapshot = callback.snapshot
    names = (*COUNTED, "total_entries", "capacity", "memory_size_mb", "error_count", "batch_size")
    return {
        "step": snapshot.step,
        "windows": callback.monitor.windows,
        **{name: (snapshot.value(name), snapshot.layers(name)) for name in names},
    }


class SaveAt(pl.Callback):
    """Saves a checkpoint in a hook once so many steps are done."""

    def __init__(self, path: Path, step: int, hook: str) -> None:
        self.path, self.step, self.batches = path, step, 0
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def resume_and_compare(
    root: Path,
    saver: SaveAt,
    batches: tuple[Any, Any],
    *,
    only: tuple[str, ...] = (),
    model: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """A run resumed from the saved checkpoint ends with the totals of one never interrupted.

    ``only``: totals to compare, where the model itself goes another way after the resume.
    """
    whole = CMRMonitorCallback(monitoring=STRICT)
    module = Module(**(model or {}))
    tap = Tap(module)
    pl.seed_everything(5, verbose=False)
    trainer(root / "whole", [whole, saver], **settings).fit(module, *batches)
    assert whole.snapshot.layers("states_captured") == tap.of("states_captured")
    assert whole.snapshot.layers("total_entries") == tap.entries()

    resumed = CMRMonitorCallback(monitoring=STRICT)
    module = Module(**(model or {}))
    rest = Tap(module)
    trainer(root / "resumed", [resumed], **settings).fit(module, *batches, ckpt_path=saver.path)
    assert 0 < sum(rest.of("states_captured").values()) < sum(tap.of("states_captured").values())
    expected, found = totals(whole), totals(resumed)
    names = only or tuple(expected)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    logged, all_of_it = series(root / "resumed"), series(root / "whole")
    tag = "cmr_capture/states_stored/layer_04"
    assert {k: v for k, v in all_of_it[tag].items() if k >= saver.step} == logged[tag] != {}
    assert set(logged["train/loss"]) <= set(all_of_it["train/loss"])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of 16 steps, a checkpoint by ModelCheckpoint after each, and its totals."""
    root = tmp_path_factory.mktemp("run")
    whole = CMRMonitorCallback(monitoring=STRICT)
    saver = pl.callbacks.ModelCheckpoint(
        root / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    module = Module()
    tap = Tap(module)
    fitter = trainer(root, [saver, whole], max_epochs=2, enable_checkpointing=True)
    fitter.fit(module, loader(8))
    for name in COUNTED:
        assert whole.snapshot.layers(name) == tap.of(name)
    return root, totals(whole)


@pytest.mark.parametrize("step", range(1, 16))
def test_resuming_anywhere_in_a_window_gives_the_same_totals(
    tmp_path: Path, checkpoints: tuple[Path, dict[str, Any]], step: int
) -> None:
    root, expected = checkpoints
    path = root / "saved" / f"step={step}.ckpt"
    resumed = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path, [resumed], max_epochs=2).fit(Module(), loader(8), ckpt_path=path)
    assert totals(resumed) == expected
    logged, whole = series(tmp_path), series(root)
    stored = logged["cmr_capture/states_stored/layer_04"]
    every = whole["cmr_capture/states_stored/layer_04"]
    assert stored == {at: value for at, value in every.items() if at >= step}


def test_the_callbacks_state_is_plain_data(checkpoints: tuple[Path, dict[str, Any]]) -> None:
    root, _ = checkpoints
    saved = torch.load(root / "saved" / "step=7.ckpt", weights_only=True)
    state = saved["callbacks"]["CMRMonitorCallback"]

    def kinds(value: Any) -> set[type]:
        if type(value) is dict:
            return {dict}.union(*map(kinds, value), *map(kinds, value.values()))
        return {list}.union(*map(kinds, value)) if type(value) is list else {type(value)}

    assert kinds(state) <= {dict, list, int, float, str, bool, type(None), torch.Tensor}


def test_a_checkpoint_is_the_same_whoever_saves_first(tmp_path: Path) -> None:
    # the user's callback comes first, so the monitor has not seen that the step is over
    for step in (3, 5, 8):
        saver = SaveAt(tmp_path / f"{step}.ckpt", step, "on_train_batch_end")
        whole, resumed = (CMRMonitorCallback(monitoring=STRICT) for _ in range(2))
        trainer(tmp_path, [saver, whole]).fit(Module(), loader(13))
        trainer(tmp_path, [resumed]).fit(Module(), loader(13), ckpt_path=saver.path)
        one, other = totals(resumed), totals(whole)
        for not_known in ("windows", "batch_size"):  # that step is not timed
            del one[not_known], other[not_known]
        assert one == other


@pytest.mark.parametrize(
    "hook", ["on_validation_end", "on_validation_batch_end", "on_validation_start"]
)
@pytest.mark.parametrize("step", [4, 8, 10])
def test_a_checkpoint_made_around_validation(tmp_path: Path, hook: str, step: int) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", step, hook)
    # a validation that was cut short is not taken up again: the stores miss what it would put in
    whole_validation = hook == "on_validation_end"
    resume_and_compare(
        tmp_path,
        saver,
        (loader(17), loader(3, seed=9)),
        only=() if whole_validation else ("step", "windows", *COUNTED[:5], "batch_size"),
        val_check_interval=2,
    )


def test_a_checkpoint_made_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", 7, "on_train_epoch_end")
    resume_and_compare(tmp_path, saver, (loader(7), None), max_epochs=3)


def test_a_checkpoint_of_accumulated_batches(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", 3, "on_train_batch_end")
    resume_and_compare(
        tmp_path, saver, (loader(32), None), accumulate_grad_batches=4, log_every_n_steps=2
    )


def test_a_checkpoint_of_numbers_on_a_device(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", 8, "on_train_batch_end")
    resume_and_compare(tmp_path, saver, (loader(17), None), model={"tensors": True})


def test_resuming_a_run_that_is_over_adds_nothing(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", 10, "on_train_batch_end")
    whole = CMRMonitorCallback(monitoring=STRICT)
    trainer(tmp_path / "one", [whole, saver]).fit(Module(), loader(10))
    resumed = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(tmp_path / "two", [resumed], max_steps=10)
    fitter.fit(Module(), loader(10), ckpt_path=saver.path)
    assert resumed.monitor.windows == whole.monitor.windows == 2
    assert resumed.snapshot.value("states_captured") == whole.snapshot.value("states_captured")


class FindsMetrics(pl.Callback):
    """What is in callback_metrics when training starts and when validation ends."""

    def __init__(self) -> None:
        self.start: dict[str, float] = {}
        self.validation: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.start = {name: float(v) for name, v in trainer.callback_metrics.items()}

    def on_validation_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.validation.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def test_what_others_monitor_is_there_again_after_resuming(tmp_path: Path) -> None:
    """The verdict is remembered, and no metric is missing until the first window has ended."""
    saver = SaveAt(tmp_path / "at.ckpt", 16, "on_train_batch_end")
    whole = CMRMonitorCallback(monitoring=STRICT)
    batches = (loader(24), loader(2))
    settings: dict[str, Any] = {"val_check_interval": 6}
    trainer(tmp_path, [whole, saver], **settings).fit(Module(), *batches)
    score = series(tmp_path)["cmr_health/score"][14]
    assert score < 100, "the default rules find fault with layer 6"

    finds = FindsMetrics()
    resumed = CMRMonitorCallback(monitoring=STRICT)
    best = pl.callbacks.ModelCheckpoint(
        tmp_path / "best", monitor="cmr_capture/storage_efficiency", mode="max"
    )
    settings["enable_checkpointing"] = True
    trainer(tmp_path / "resumed", [resumed, finds, best], **settings).fit(
        Module(), *batches, ckpt_path=saver.path
    )
    assert finds.validation[0]["cmr_capture/storage_efficiency"] > 0  # at step 17
    # an event file holds 32 bits
    assert finds.start["cmr_health/score"] == pytest.approx(score, rel=1e-6)


def test_testing_from_a_checkpoint_keeps_the_training_snapshot(tmp_path: Path) -> None:
    saver = SaveAt(tmp_path / "at.ckpt", 5, "on_train_batch_end")
    callback = CMRMonitorCallback(monitoring=STRICT)
    fitter = trainer(tmp_path, [callback, saver])
    module = Module()
    fitter.fit(module, loader(10), loader(2))
    before = totals(callback)
    fitter.test(module, loader(3), ckpt_path=saver.path, verbose=False)
    assert callback.snapshots["test"].value("capture_calls") == 3 * 3
    assert callback.snapshots["val"].value("capture_calls") == 3 * 2
    assert totals(callback) == before
