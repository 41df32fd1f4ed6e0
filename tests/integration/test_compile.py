"""Activation checkpointing and torch.compile: what runs twice counts once, without recompiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch._dynamo.utils import counters

from cmr_monitor_callbacks import CMRMonitorCallback
from tests.integration.tap import COUNTED, Tap
from tests.models import MemoryModule, loader, trainer

STRICT = {"on_monitor_error": "raise"}
BATCHES = 12


def expected(layers: tuple[int, ...], batches: int = BATCHES) -> dict[str, dict[int, float]]:
    """What a run in plain Python counts: the counts are a function of the keys alone."""
    module = MemoryModule(layers)
    tap = Tap(module)
    fitter = trainer(None, [], logger=False)
    fitter.fit(module, loader(batches))
    return {**{name: tap.of(name) for name in COUNTED}, "total_entries": tap.entries()}


def check(callback: CMRMonitorCallback, counted: dict[str, dict[int, float]]) -> None:
    assert sum(counted["eviction_count"].values()) > 0
    for name, values in counted.items():
        assert callback.snapshot.layers(name) == values, name


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("tensors", [False, True], ids=["ints", "tensors"])
@pytest.mark.parametrize("recompute", ["", "reentrant", "direct"])
def test_a_recompute_is_not_counted(
    tmp_path: Path, strict: CMRMonitorCallback, recompute: str, tensors: bool
) -> None:
    module = MemoryModule(recompute=recompute, tensors=tensors)
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    module.blocks[0].register_forward_pre_hook(count)
    trainer(tmp_path, [strict], logger=False).fit(module, loader(BATCHES))
    assert calls == BATCHES * (2 if recompute else 1)  # it did run again
    check(strict, expected((2, 4, 6)))
    assert strict.snapshot.value("invalid_samples") == 0


def test_a_recompute_of_accumulated_batches_is_not_counted(
    tmp_path: Path, strict: CMRMonitorCallback
) -> None:
    module = MemoryModule(recompute="direct")
    fitter = trainer(tmp_path, [strict], logger=False, accumulate_grad_batches=4)
    fitter.fit(module, loader(BATCHES))
    check(strict, expected((2, 4, 6)))


class Graphs(pl.Callback):
    """How many graphs had been compiled after each batch."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.after.append(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    ("backend", "recompute"), [("inductor", ""), ("aot_eager", "direct"), ("aot_eager", "")]
)
def test_compiled_blocks_count_without_breaks_or_recompiles(
    tmp_path: Path,
    strict: CMRMonitorCallback,
    fresh_compiler: None,
    backend: str,
    recompute: str,
) -> None:
    layers = (2,) if backend == "inductor" else (2, 4)
    module = MemoryModule(layers, tensors=True, backend=backend, recompute=recompute)
    graphs = Graphs()
    trainer(tmp_path, [strict, graphs], logger=False).fit(module, loader(BATCHES))
    check(strict, expected(layers))
    assert not counters["graph_break"]
    assert graphs.after[0] > 0
    assert graphs.after[1:] == graphs.after[1:2] * (BATCHES - 1)


def test_compiled_blocks_keep_the_stages_apart(
    tmp_path: Path, strict: CMRMonitorCallback, fresh_compiler: None
) -> None:
    module = MemoryModule((2,), tensors=True, backend="aot_eager")
    fitter = trainer(tmp_path, [strict], logger=False, val_check_interval=4)
    fitter.fit(module, loader(BATCHES), loader(3, seed=5))
    plain = MemoryModule((2,))
    tap = Tap(plain)
    trainer(tmp_path, [], logger=False, val_check_interval=4).fit(
        plain, loader(BATCHES), loader(3, seed=5)
    )
    for name in ("states_captured", "states_stored", "eviction_count", "total_retrievals"):
        assert strict.snapshot.layers(name) == tap.of(name), name
    captured = tap.of("states_captured", "val")[2] / 3
    assert strict.snapshots["val"].layers("states_captured") == {2: captured}
    assert strict.snapshots["val"].layers("total_entries") == tap.entries()


class CompiledLate(MemoryModule):
    """Compiled after 25 steps of training, as after a warm-up."""

    def on_fit_start(self) -> None:
        pass

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 25:
            self.compile_blocks()


def test_blocks_that_are_compiled_late_count_once_too(
    tmp_path: Path, strict: CMRMonitorCallback, fresh_compiler: None
) -> None:
    module = CompiledLate((2,), tensors=True, backend="aot_eager", recompute="direct")
    trainer(tmp_path, [strict], logger=False).fit(module, loader(32))
    check(strict, expected((2,), 32))


class FailsInBackward(MemoryModule):
    """The gradient of one batch cannot be computed."""

    fail_at = -1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == self.fail_at:
            loss.register_hook(self._raise)
        return loss

    def _raise(self, gradient: torch.Tensor) -> None:
        raise RuntimeError("on purpose")


def test_after_a_failed_backward_compiled_blocks_count_again(
    tmp_path: Path, strict: CMRMonitorCallback, fresh_compiler: None
) -> None:
    module = FailsInBackward((2,), tensors=True, backend="aot_eager")
    module.fail_at = 3
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(tmp_path, [strict], logger=False).fit(module, loader(BATCHES))
    again = MemoryModule((2,), tensors=True, backend="aot_eager")
    trainer(tmp_path, [strict], logger=False).fit(again, loader(BATCHES))
    check(strict, expected((2,)))


def test_a_compiled_block_without_a_monitor_compiles_and_trains(
    tmp_path: Path, fresh_compiler: None
) -> None:
    module = MemoryModule((2,), tensors=True, backend="aot_eager")
    trainer(tmp_path, [], logger=False).fit(module, loader(4))
    assert not counters["graph_break"]
    assert len(module.losses) == 4
