"""A real Trainer on two real ranks, beside independent taps on both."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.ranks import run_ranks
from tests.integration.event_files import series
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, rows, trainer

pytestmark = pytest.mark.distributed
STRICT = {"on_monitor_error": "raise", "reduction_timeout": 20.0}


def batches(count: int, rank: int, size: int) -> DataLoader[Any]:
    """``count`` batches of three rows for this rank, other ones than for its peers."""
    data = rows(count * size)
    sampler = DistributedSampler(data, size, rank, shuffle=False)
    return DataLoader(data, 3, sampler=sampler)


def on_ranks(rank: int, size: int, root: Path, callbacks: list[Any], **settings: Any) -> pl.Trainer:
    """A Trainer in a process that is there already, as under torchrun."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1")
    os.environ.update(WORLD_SIZE=str(size), MASTER_PORT="29500")
    # the stores are buffers: each rank fills its own
    strategy = DDPStrategy(broadcast_buffers=False, process_group_backend="gloo")
    return trainer(root, callbacks, devices=size, strategy=strategy, **settings)


def _fit(
    rank: int,
    size: int,
    root: Path,
    count: int = 23,
    val: int = 2,
    monitored: bool = True,
    monitoring: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    pl.seed_everything(3, verbose=False)
    module = MemoryModule()
    tap = Tap(module)
    callback = CMRMonitorCallback(monitoring={**STRICT, **(monitoring or {})})
    callbacks: list[Any] = [callback] if monitored else []
    stop = settings.pop("stop", None)
    if stop:
        callbacks.append(pl.callbacks.EarlyStopping(monitor=stop, mode="max", patience=100))
    fitter = on_ranks(rank, size, root, callbacks, **settings)
    fitter.fit(module, batches(count, rank, size), batches(val, rank, size) if val else None)
    weights = b"".join(p.detach().numpy().tobytes() for p in module.parameters())
    snapshot = callback.snapshot
    return {
        "tap": {name: tap.of(name) for name in COUNTED},
        "tap_val": {name: tap.of(name, "val") for name in COUNTED},
        "entries": tap.entries(),
        "snapshot": {name: snapshot.layers(name) for name in (*COUNTED, "total_entries")},
        "val": {
            name: callback.snapshots["val"].layers(name)
            for name in COUNTED
            if "val" in callback.snapshots
        },
        "world": snapshot.world_size,
        "step": snapshot.step,
        "windows": callback.monitor.windows,
        "steps_by_rank": snapshot.ranks("total_forward_time", over="run"),
        "losses": module.losses,
        "weights": hashlib.sha256(weights).hexdigest(),
        "metrics": {k: float(v) for k, v in fitter.callback_metrics.items() if "cmr_" in k},
    }


def fit(folder: Path, **how: Any) -> list[dict[str, Any]]:
    """Both ranks' answers; the Trainer's files are in ``folder/run``."""
    (folder / "ranks").mkdir(parents=True)
    scenario = partial(_fit, root=folder / "run", **how)
    answers = run_ranks(scenario, 2, folder / "ranks", limit=90.0)
    for answer in answers:
        assert "raised" not in answer, answer["raised"]
    return answers


def both(answers: list[dict[str, Any]], where: str = "tap") -> dict[str, dict[str, float]]:
    """What the ranks' taps counted together."""
    first, second = (answer[where] for answer in answers)
    return {
        name: {layer: first[name][layer] + second[name][layer] for layer in first[name]}
        for name in first
    }


def check(answers: list[dict[str, Any]]) -> None:
    expected = both(answers)
    for answer in answers:
        assert answer["world"] == 2
        for name in COUNTED:
            assert answer["snapshot"][name] == expected[name], name
        held = [other["entries"] for other in answers]
        assert answer["snapshot"]["total_entries"] == {k: held[0][k] + held[1][k] for k in held[0]}
        assert answer["threads"] == []
        assert answer["messages"] == []
    assert answers[0]["metrics"] == answers[1]["metrics"]


def test_the_event_file_holds_what_both_ranks_counted(tmp_path: Path) -> None:
    answers = fit(tmp_path, val_check_interval=6, max_epochs=2)
    check(answers)
    expected = both(answers)
    logged = series(tmp_path / "run")
    for name in ("states_captured", "states_stored"):
        for layer, value in expected[name].items():
            points = logged[f"cmr_capture/{name}/layer_{int(layer):02d}"]
            assert list(points) == [4, 9, 14, 19, 24, 29, 34, 39, 44, 45]
            assert points[45] == value
    # the last of several validations
    for answer in answers:
        assert answer["val"] == answers[0]["val"]
        calls = both(answers, "tap_val")["capture_calls"]
        assert answer["val"]["capture_calls"] == {k: v / 6 for k, v in calls.items()}


def test_an_epoch_shorter_than_a_window(tmp_path: Path) -> None:
    """Both ranks see the same numbers when EarlyStopping looks, and there are some."""
    answers = fit(
        tmp_path,
        count=3,
        max_epochs=3,
        log_every_n_steps=50,
        stop="cmr_capture/storage_efficiency",
        check_val_every_n_epoch=1,
    )
    check(answers)
    assert answers[0]["metrics"]["cmr_capture/storage_efficiency"] > 0


def test_accumulated_batches(tmp_path: Path) -> None:
    answers = fit(tmp_path, count=42, accumulate_grad_batches=4, log_every_n_steps=3)
    check(answers)
    assert answers[0]["step"] == 10
    assert answers[0]["windows"] == 4


def test_windows_in_seconds_end_at_the_same_steps(tmp_path: Path) -> None:
    answers = fit(tmp_path, count=60, monitoring={"metric_collection_interval": 0.05})
    check(answers)
    assert answers[0]["windows"] == answers[1]["windows"] > 2


def test_loss_and_weights_are_bitwise_those_without_the_callback(tmp_path: Path) -> None:
    watched = fit(tmp_path / "with", logger=False)
    bare = fit(tmp_path / "without", logger=False, monitored=False)
    for one, other in zip(watched, bare, strict=True):
        assert one["losses"] == other["losses"]
        assert one["weights"] == other["weights"]


class SaveAt(pl.Callback):
    """A checkpoint after some steps."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _part(rank: int, size: int, root: Path, save: int, load: bool) -> dict[str, Any]:
    """A run to its end, with a checkpoint on the way or from one."""
    pl.seed_everything(3, verbose=False)
    module = MemoryModule((2, 6))
    callback = CMRMonitorCallback(monitoring=STRICT)
    at_load: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_train_start(self, *args: Any) -> None:
            at_load.update(callback.snapshot.layers("states_captured"))

    path = root / "at.ckpt"
    saver = SaveAt(path, save)
    data = batches(30, rank, size)
    settings: dict[str, Any] = {"log_every_n_steps": 10, "logger": False}
    if size > 1:
        fitter = on_ranks(rank, size, root, [callback, saver, Look()], **settings)
    else:
        fitter = trainer(root, [callback, saver, Look()], **settings)
    counts: dict[int, dict[Any, float]] = {}
    original: Callable[..., None] = callback.monitor.step

    def counting(step: int | None = None) -> None:
        original(step)
        counts[callback.monitor.current_step] = callback.snapshot.layers("states_captured")

    callback.monitor.step = counting  # type: ignore[method-assign]
    fitter.fit(module, data, ckpt_path=path if load else None)
    return {
        "at_load": at_load,
        "after": counts.get(save, {}),
        "end": callback.snapshot.layers("states_captured"),
        "calls": callback.snapshot.value("capture_calls"),
        "world": callback.snapshot.world_size,
    }


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 2)])
def test_resuming_with_the_same_and_another_number_of_ranks(
    tmp_path: Path, before: int, after: int
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    save = 17  # the last window of all ranks ended after step 10
    run = partial(_part, root=tmp_path, save=save)
    first = run_ranks(partial(run, load=False), before, tmp_path / "one", limit=60.0)
    then = run_ranks(partial(run, load=True), after, tmp_path / "two", limit=60.0)
    for answer in (*first, *then):
        assert "raised" not in answer, answer["raised"]
    # a checkpoint of one process has the window begun, one of several ends with the last window
    kept = 17 if before == 1 else 10
    for rank, answer in enumerate(then):
        assert answer["world"] == after
        steps = 2 * (before * kept + after * (30 - 17))  # two layers
        assert answer["calls"] == steps, rank
        told = [text for text in answer["messages"] if "not in the totals" in text]
        assert len(told) == (before > 1 and rank == 0), answer["messages"]


def _raises(rank: int, size: int, root: Path) -> dict[str, Any]:
    class Fails(MemoryModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if rank == 1 and batch_idx == 7:
                raise RuntimeError("on purpose")
            return super().training_step(batch, batch_idx)

    callback = CMRMonitorCallback(monitoring={"reduction_timeout": 5.0})
    fitter = on_ranks(rank, size, root, [callback], logger=False)
    try:
        fitter.fit(Fails(), batches(20, rank, size))
    except Exception as error:
        return {"error": str(error), "stored": callback.snapshot.value("capture_calls")}
    return {"error": ""}


def test_an_exception_on_one_rank_ends_both(tmp_path: Path) -> None:
    first, second = run_ranks(partial(_raises, root=tmp_path), 2, tmp_path, limit=60.0)
    assert second["error"] == "on purpose"
    assert first["error"], "the other cannot go on either"
    for answer in (first, second):
        assert answer["stored"] == 2 * 3 * 5  # the one whole window
        assert answer["threads"] == []


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork", "fsdp2"])
def test_every_strategy_that_starts_its_own_processes(tmp_path: Path, strategy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.strategies", strategy, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    expected = both(answers)
    assert answers[0]["tap"] != answers[1]["tap"]
    for answer in answers:
        assert answer["snapshot"] == expected
        assert answer["world"] == 2
        assert answer["failures"] == 0
        assert answer["threads"] == []
