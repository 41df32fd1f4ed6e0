"""Diagnostics in a fit: the loss with and without memory, and what that must not touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from cmr_monitor_callbacks import CMRMonitorCallback
from examples.cmr_lm.module import CMRLanguageModule
from tests.integration.test_diagnostics_example import HEALTHY, text_batches
from tests.memory_models import cmr_like
from tests.models import trainer


def loader(count: int) -> Any:
    whole = torch.cat(text_batches(count))
    return DataLoader(TensorDataset(whole[:, :-1], whole[:, 1:]), 8)


class Recorded(CMRLanguageModule):
    """Keeps what it validated, and draws a random number for it."""

    def __init__(self) -> None:
        super().__init__(**HEALTHY | {"dropout": 0.1})
        self.validated: list[float] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.model(*batch)["loss"] + 0 * torch.rand(())
        self.validated.append(float(loss))
        self.log("val/loss", loss)


def fitted(root: Path, every: int | None) -> tuple[Recorded, CMRMonitorCallback | None, Any]:
    pl.seed_everything(3, verbose=False)
    module = Recorded()
    callbacks: list[Any] = []
    if every is not None:
        settings = {"diagnostics": {"compare_memory_every": every}, "on_monitor_error": "raise"}
        callbacks = [CMRMonitorCallback(monitoring=settings)]
    fitter = trainer(root, callbacks, logger=CSVLogger(root), max_epochs=2, num_sanity_val_steps=1)
    fitter.fit(module, loader(12), loader(5))
    return module, callbacks[0] if callbacks else None, fitter


def left(module: Recorded, fitter: Any) -> Any:
    buffer = module.model.memory_buffer
    return (
        [p.detach().tolist() for p in module.parameters()],
        [store.states.tolist() for store in buffer.layer_buffers.values()],
        [
            {k: v for k, v in vars(layer.counters).items() if "seconds" not in k}
            for layer in module.model.memory_layers.values()
        ],
        module.validated,
        torch.get_rng_state().tolist(),
        float(fitter.callback_metrics["val/loss"]),
    )


def test_comparing_changes_no_bit_of_training_or_validation(tmp_path: Path) -> None:
    plain, _, without = fitted(tmp_path / "without", None)
    module, callback, fitter = fitted(tmp_path / "with", 2)
    assert left(module, fitter) == left(plain, without)
    assert callback is not None
    snapshot = callback.snapshots["val"]
    chosen = module.validated[-5:][::2]  # batches 0, 2 and 4 of the last validation
    assert snapshot.value("loss_with_memory") == pytest.approx(sum(chosen) / 3, rel=1e-6)
    assert snapshot.value("memory_gain") == pytest.approx(
        snapshot.value("loss_without_memory") - snapshot.value("loss_with_memory"), abs=1e-6
    )
    # copies are not counted: two layers, five batches, one reconstruction each
    assert snapshot.value("reconstruction_calls") == 10
    rows = (tmp_path / "with").glob("**/metrics.csv")
    header = next(rows).read_text().splitlines()[0].split(",")
    for name in ("loss_with_memory", "loss_without_memory", "memory_gain"):
        assert f"cmr_val_model/{name}" in header
    series = callback.monitor.history.series("memory_gain", stage="val")
    assert series.value.tolist()[-1] == pytest.approx(snapshot.value("memory_gain"))
    told = callback.monitor.run_diagnostics()
    assert told["reconstruction_analysis"]["memory_helps"]["batches"] == 6
    assert "entries left out" in told["reconstruction_analysis"]["memory_helps"]["how"]
    json.dumps(told, allow_nan=False)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    _, callback, _ = fitted(tmp_path, 0)
    assert callback is not None
    snapshot = callback.snapshots["val"]
    assert snapshot.value("loss_with_memory") != snapshot.value("loss_with_memory")  # no data
    told = callback.monitor.run_diagnostics()
    assert any("compare_memory_every is 0" in text for text in told["not_available"])


def test_counters_of_the_model_agree_although_validation_counts_there_too(tmp_path: Path) -> None:
    module, callback, _ = fitted(tmp_path, 0)
    assert callback is not None and module.training
    told = callback.monitor.run_diagnostics()
    counters = {(c["metric"], c["layer"]): c for c in told["counter_analysis"]["counters"]}
    assert counters["total_reconstructions", 1]["value"] > 0
    for counter in counters.values():
        assert counter["value"] == counter["counted"], counter
    assert [row["gap"] for row in told["memory_analysis"]["conservation"]] == [0, 0]
    assert told["findings"] == []


def test_a_model_with_hooks_of_its_own_that_can_be_copied(tmp_path: Path) -> None:
    """Its switches are turned off on the copy, and its hooks, which are objects, go with it."""
    module = cmr_like.CMRLikeModule()
    settings = {"diagnostics": {"compare_memory_every": 1}, "on_monitor_error": "raise"}
    callback = CMRMonitorCallback(monitoring=settings)
    trainer(tmp_path, [callback]).fit(module, cmr_like.loader(12), cmr_like.loader(3, seed=2))
    told = callback.monitor.run_diagnostics()["reconstruction_analysis"]["memory_helps"]
    assert told["batches"] == 3
    assert "reconstruction_enabled = False" in told["how"]


class Silent(cmr_like.CMRLikeModule):
    """Neither returns nor logs a loss."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


def test_a_validation_without_a_loss_is_a_finding(tmp_path: Path) -> None:
    module = Silent()
    settings = {"diagnostics": {"compare_memory_every": 1}, "on_monitor_error": "raise"}
    callback = CMRMonitorCallback(monitoring=settings)
    trainer(tmp_path, [callback]).fit(module, cmr_like.loader(12), cmr_like.loader(3, seed=2))
    names = {f["name"]: f for f in callback.monitor.run_diagnostics()["findings"]}
    assert "neither returns nor logs a loss" in names["memory_not_compared"]["sentence"]


@pytest.mark.parametrize("kind", ["knn", "fast_weights"])
def test_memories_of_other_people(tmp_path: Path, kind: str) -> None:
    """What they offer nothing for is said, and nothing fails."""
    module, batches = others(tmp_path, kind)
    settings = {"diagnostics": {"compare_memory_every": 1}, "on_monitor_error": "raise"}
    callback = CMRMonitorCallback(monitoring=settings)
    trainer(tmp_path, [callback]).fit(module, batches, batches)
    told = callback.monitor.run_diagnostics()
    json.dumps(told, allow_nan=False)
    assert {f["name"] for f in told["findings"]} <= {"memory_not_compared"}
    assert any(
        "they lie in an index" in t or "weights have none" in t for t in told["not_available"]
    )


def others(tmp_path: Path, kind: str) -> tuple[Any, Any]:
    if kind == "knn":
        from tests.memory_models import knn

        return knn.OwnedModule(tmp_path), knn.loader(3)
    from tests.memory_models import fast_weights

    return fast_weights.FastWeightsModule(), fast_weights.loader(3)
