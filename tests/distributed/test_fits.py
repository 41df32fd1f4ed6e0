"""Lightning's Trainer on two CPU ranks: files and numbers against the taps of both ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.distributed.fitting import STRICT, AtSteps, added, fitter, logger, module
from tests.distributed.processes import Rank, free_port, results, start
from tests.integration.event_files import series
from tests.integration.tap import COUNTED
from tests.models import LAYERS, loader

pytestmark = pytest.mark.distributed

EVERY = {**STRICT, "layer_metrics": ["*"], "whole_metrics": ["*"]}
Scene = Callable[[Rank, int, Path], dict[str, Any]]


def _fit(
    rank: Rank,
    port: int,
    root: Path,
    batches: tuple[Any, Any],
    *callbacks: Any,
    monitoring: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """A run, and what this rank knows of it."""
    model, tap = module()
    steps = AtSteps(tap)
    ours = CMRMonitorCallback(monitoring=EVERY | (monitoring or {}))
    fit = fitter(rank, port, root, [ours, steps, *callbacks], logger=logger(root), **settings)
    fit.fit(model, *batches)
    shown = ours.snapshot
    return {
        "after": steps.after,
        "val": {name: tap.of(name, "val") for name in COUNTED},
        "step": shown.step,
        "steps": fit.global_step,
        "world": shown.world_size,
        "failures": ours.monitor.failures,
        "layers": {name: shown.layers(name) for name in (*COUNTED, "total_entries")},
        "ranks": shown.ranks("states_stored", over="run"),
        "metrics": {k: float(v) for k, v in fit.callback_metrics.items() if k.startswith("cmr")},
        "val worlds": {stage: s.world_size for stage, s in ours.snapshots.items()},
        "losses": model.losses,
        "reason": fit.should_stop,
    }


def _sums(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    batches = (loader(44), loader(6, seed=5))
    settings: dict[str, Any] = {"val_check_interval": 8, "num_sanity_val_steps": 1, "max_epochs": 2}
    return _fit(rank, port, root, batches, **settings)


def _accumulated(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "log_every_n_steps": 2}
    return _fit(rank, port, root, (loader(34), None), **settings)


class _Slow(pl.Callback):
    """Rank 1 needs longer for its step than rank 0."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        time.sleep(0.004 * trainer.global_rank)


def _seconds(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    given = {"metric_collection_interval": 0.1}
    batches = (loader(200), loader(4, seed=5))
    return _fit(rank, port, root, batches, _Slow(), monitoring=given, val_check_interval=33)


def _stopping(metric: str) -> Scene:
    def scene(rank: Rank, port: int, root: Path) -> dict[str, Any]:
        # as high as it can be, so that it stops after two looks without a better one
        stop = pl.callbacks.EarlyStopping(metric, mode="max", patience=2, min_delta=1e9)
        settings: dict[str, Any] = {"max_epochs": 9, "log_every_n_steps": 50}
        return _fit(rank, port, root, (loader(6), loader(2, seed=5)), stop, **settings)

    return scene


class _Asks(pl.Callback):
    """Rank 1 asks for a checkpoint, and later to stop."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 7:
            self.monitor.request_checkpoint("rank 1 wants to keep this")
        if trainer.global_rank == 1 and trainer.global_step == 17:
            self.monitor.request_stop("rank 1 has had enough")


def _asks(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    ours = CMRMonitorCallback(monitoring=EVERY)
    model, _ = module()
    callbacks = [ours, _Asks(ours.monitor)]
    fit = fitter(rank, port, root, callbacks, logger=False, enable_checkpointing=True)
    fit.fit(model, loader(80))
    saved = sorted(path.name for path in root.rglob("*.ckpt"))
    return {"steps": fit.global_step, "saved": saved, "step": ours.snapshot.step}


def _bitwise(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    found = []
    for watched in (False, True, False):
        pl.seed_everything(3, verbose=False)
        model, _ = module()
        callbacks = [CMRMonitorCallback(monitoring=STRICT)] if watched else []
        settings: dict[str, Any] = {"num_sanity_val_steps": 1, "val_check_interval": 5}
        fit = fitter(rank, port, root, callbacks, logger=False, **settings)
        fit.fit(model, loader(40, shuffle=True), loader(4))
        state = {name: value.clone() for name, value in model.state_dict().items()}
        found.append((model.losses, state, torch.get_rng_state()))
    (losses, state, rng), (others, other_state, other_rng) = found[:2]
    return {
        "losses": losses == others,
        "steps": len(losses),
        "weights": [k for k in state if not torch.equal(state[k], other_state[k])],
        "random": torch.equal(rng, other_rng),
        "sane": found[0][0] == found[2][0],
    }


def _test_and_predict(rank: Rank, port: int, root: Path) -> dict[str, Any]:
    model, tap = module()
    ours = CMRMonitorCallback(monitoring=EVERY)
    fit = fitter(rank, port, root, [ours], logger=logger(root))
    fit.fit(model, loader(10))
    before = ours.snapshot.value("states_captured")
    fit.test(model, loader(6, seed=5), verbose=False)
    fit.predict(model, loader(6, seed=5), return_predictions=False)
    return {
        "taps": {stage: tap.of("states_captured", stage) for stage in ("test", "predict")},
        "shown": {s: ours.snapshots[s].layers("states_captured") for s in ("test", "predict")},
        "worlds": [ours.snapshots[s].world_size for s in ("test", "predict")],
        "train": (before, ours.snapshot.value("states_captured")),
    }


SCENES: dict[str, Scene] = {
    "sums": _sums,
    "accumulated": _accumulated,
    "seconds": _seconds,
    "stopping score": _stopping("cmr_health/score"),
    "stopping metric": _stopping("cmr_capture/states_stored"),
    "asks": _asks,
    "bitwise": _bitwise,
    "test and predict": _test_and_predict,
}


def _run(rank: Rank, port: int) -> dict[str, Any]:
    """One scene after another, so that processes are started once."""
    return {name: scene(rank, port, rank.folder / name) for name, scene in SCENES.items()}


Said = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer") / "job"


@pytest.fixture(scope="module")
def said(folder: Path) -> Said:
    return results(_run, 2, folder, free_port(), limit=120.0)


COMPONENTS = {
    "states_captured": "capture",
    "states_stored": "capture",
    "capture_calls": "capture",
    "eviction_count": "buffer",
    "total_entries": "buffer",
    "total_retrievals": "retrieval",
    "cache_hits": "retrieval",
    "total_reconstructions": "reconstruction",
}


def check_file(root: Path, ranks: Said, ends: list[int] | None = None) -> list[int]:
    """The event file is the sum of both taps at every window's end."""
    logged = series(root)
    steps = sorted(logged["cmr_capture/states_stored"])
    assert ends is None or steps == ends
    for step in steps:
        taps = [one["after"][step] for one in ranks]
        for name, component in COMPONENTS.items():
            by_layer = added(taps, name)
            for layer, value in by_layer.items():
                tag = f"cmr_{component}/{name}/layer_{layer:02d}"
                assert logged[tag][step] == value, (tag, step)
            assert logged[f"cmr_{component}/{name}"][step] == sum(by_layer.values()), (name, step)
    return steps


def check_ranks(ranks: Said) -> None:
    """Both ranks saw the same, and it is the sum of what the taps counted."""
    last = [one["after"][max(one["after"])] for one in ranks]
    for one in ranks:
        assert (one["world"], one["failures"]) == (2, 0)
        assert str(one["layers"]) == str(ranks[0]["layers"])
        assert one["metrics"] == ranks[0]["metrics"]
        assert one["layers"] == {name: added(last, name) for name in one["layers"]}
        stored = {r: sum(tap["states_stored"].values()) for r, tap in enumerate(last)}
        assert one["ranks"] == stored


def test_the_event_file_is_the_sum_of_both_ranks(said: Said, folder: Path) -> None:
    ranks = [one["sums"] for one in said]
    check_file(folder / "sums", ranks, [*range(4, 44, 5), 43])
    check_ranks(ranks)
    assert ranks[0]["after"][43] != ranks[1]["after"][43]


def test_validation_is_the_sum_of_both_ranks(said: Said, folder: Path) -> None:
    ranks = [one["sums"] for one in said]
    logged = series(folder / "sums")
    for layer in LAYERS:
        # each validation logs its own; the taps count them all
        values = logged[f"cmr_val_capture/states_captured/layer_{layer:02d}"]
        assert len(values) == 4
        counted = sum(one["val"]["states_captured"][layer] for one in ranks)
        assert sum(values.values()) == counted > 0
    assert [one["val worlds"] for one in ranks] == [{"val": 2}, {"val": 2}]


def test_accumulated_batches_belong_to_their_step(said: Said, folder: Path) -> None:
    ranks = [one["accumulated"] for one in said]
    assert [one["steps"] for one in ranks] == [6, 6]
    last = max(ranks[0]["after"])
    assert last == 5
    check_ranks(ranks)
    logged = series(folder / "accumulated")
    assert sorted(logged["cmr_capture/states_stored"]) == [1, 3, 5]
    assert logged["cmr_capture/capture_calls"][5] == 2 * 17 * len(LAYERS)


def test_windows_by_seconds_with_ranks_of_different_speed(said: Said, folder: Path) -> None:
    ranks = [one["seconds"] for one in said]
    steps = check_file(folder / "seconds", ranks)
    assert steps[-1] == 99
    assert 3 <= len(steps) <= 30
    gaps = [b - a for a, b in pairwise(steps[:-1])]
    assert min(gaps) > 5, "a window is longer than the lag with which it is taken"
    check_ranks(ranks)


@pytest.mark.parametrize("scene", ["stopping score", "stopping metric"])
def test_early_stopping_before_the_first_window(said: Said, folder: Path, scene: str) -> None:
    ranks = [one[scene] for one in said]
    assert [one["steps"] for one in ranks] == [9, 9]  # three epochs of three
    for one in ranks:
        assert math.isfinite(one["metrics"]["cmr_health/score"])
    check_file(folder / scene, ranks)
    check_ranks(ranks)


def test_votes_reach_the_trainer_of_every_rank(said: Said) -> None:
    ranks = [one["asks"] for one in said]
    # votes go with the windows that end at 9 and 19, and are counted four steps later
    assert [one["steps"] for one in ranks] == [24, 24]
    assert [one["step"] for one in ranks] == [23, 23]
    assert "cmr-monitor-step=14.ckpt" in ranks[0]["saved"]


def test_training_is_bitwise_the_same_with_and_without(said: Said) -> None:
    for one in said:
        found = one["bitwise"]
        assert found["sane"], "two runs without the monitor must agree to begin with"
        assert found == {
            "losses": True,
            "steps": 20,
            "weights": [],
            "random": True,
            "sane": True,
        }


def test_test_and_predict_are_sums_too_and_no_training(said: Said) -> None:
    ranks = [one["test and predict"] for one in said]
    for one in ranks:
        assert one["worlds"] == [2, 2]
        assert one["train"][0] == one["train"][1] > 0
        for stage in ("test", "predict"):
            counted = {
                layer: sum(other["taps"][stage][layer] for other in ranks) for layer in LAYERS
            }
            assert one["shown"][stage] == counted


class _Fails(pl.Callback):
    """One rank fails on its way."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 12:
            raise ValueError("this rank is broken")


def _failing(rank: Rank, port: int, mode: str) -> dict[str, Any]:
    """How a run ends of which a rank fails, with or without the monitor."""
    ours = [] if mode == "none" else [CMRMonitorCallback(monitoring={"on_monitor_error": mode})]
    model, _ = module()
    fit = fitter(rank, port, rank.folder / "run", [*ours, _Fails()], logger=False)
    begun = time.monotonic()
    try:
        fit.fit(model, loader(80))
    except Exception as error:
        return {
            "error": type(error).__name__,
            "seconds": time.monotonic() - begun,
            "failures": [list(callback.monitor.error_log) for callback in ours],
            "attached": [b.probe.attached for b in model.blocks],  # type: ignore[union-attr]
        }
    return {"error": None}


@pytest.mark.parametrize("mode", ["none", "log", "raise"])
def test_an_exception_ends_both_as_it_would_without_the_monitor(tmp_path: Path, mode: str) -> None:
    outcomes = start(_failing, 2, tmp_path / "job", free_port(), mode)
    for outcome, error in zip(outcomes, ["RuntimeError", "ValueError"], strict=True):
        assert outcome.code == 0, outcome.output
        said = outcome.result
        assert said["error"] == error
        assert said["seconds"] < 20
        assert not any(said["failures"])
        assert not any(said["attached"])
        left = [text for text in outcome.logs if text.startswith("steps 10 to 11 are not in")]
        assert len(left) == len(outcome.logs) == (mode != "none")
