"""A package's neural memories, which are weights, unchanged and against an independent count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("titans_pytorch")

import pytorch_lightning as pl
import torch
from titans_pytorch import NeuralMemory

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from cmr_monitor_callbacks.snapshot import Snapshot
from tests.memory_models.fast_weights import (
    CHUNK,
    DIM,
    IN_CONTEXT,
    PLACES,
    ROWS,
    FastWeights,
    FastWeightsModule,
    InContextModule,
    loader,
    token_loader,
)
from tests.memory_models.fast_weights_tap import FastWeightsTap
from tests.memory_models.tally import QUANTUM, TallyCallback, live, same, same_mean
from tests.models import trainer

COUNTED = (
    "states_attempted",
    "states_captured",
    "states_stored",
    "states_rejected",
    "capture_calls",
    "total_retrievals",
)
MEANS = {
    "storage_efficiency": ("states_stored", "states_captured", 1.0),
    "capture_efficiency": ("states_captured", "states_attempted", 1.0),
    "avg_capture_time": ("capture_quanta", "capture_calls", QUANTUM),
    "avg_retrieval_time": ("retrieval_quanta", "total_retrievals", QUANTUM),
}
NOT_THERE = (
    "total_entries",
    "capacity",
    "utilization_rate",
    "memory_size_mb",
    "eviction_count",
    "eviction_rate",
    "states_considered",
    "cache_hits",
    "retrieval_hit_rate",
    "reconstruction_calls",
)


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> FastWeightsTap:
    return FastWeightsTap(monkeypatch)


def watching(
    tap: FastWeightsTap, every: int = 1, model: torch.nn.Module | None = None
) -> CMRPerformanceMonitor:
    config = {"log_every_n_steps": every, "on_monitor_error": "raise"}
    return CMRPerformanceMonitor(config, model=model, clock=tap.clock)


def fit(
    folder: Path, tap: FastWeightsTap, module: pl.LightningModule, *first: Any, data: Any
) -> None:
    tap.knows(module)
    fitter = trainer(folder, [*first, TallyCallback(tap)], logger=False)
    fitter.fit(module, data, loader(2, seed=5) if hasattr(module, "first") else None)
    assert fitter.global_step == 8


def made(kind: type[Any]) -> Any:
    pl.seed_everything(1, verbose=False)
    return kind()


def check(snapshot: Snapshot, tap: FastWeightsTap, stage: str = "train") -> None:
    for name in COUNTED:
        same(snapshot, tap, name, stage)
    for name, (total, per, unit) in MEANS.items():
        same_mean(snapshot, tap, name, total, per, unit=unit, stage=stage)
    for name in NOT_THERE:
        assert math.isnan(snapshot.value(name)), name
        assert snapshot.layers(name) == {}, name


# The tap alone ------------------------------------------------------------------------------


def test_the_tap_counts_what_can_be_counted_by_hand(tap: FastWeightsTap) -> None:
    memory = NeuralMemory(dim=DIM, chunk_size=CHUNK)
    tap.knows(torch.nn.ModuleDict({"it": memory}))
    _, state = memory(torch.randn(ROWS, 10, DIM))
    assert state.cache_store_segment.shape[-2] == 2
    assert tap.of("states_attempted") == tap.of("states_captured") == {"it": ROWS * 10}
    assert (tap.of("states_stored"), tap.of("states_rejected")) == ({"it": ROWS * 8}, {"it": 4})
    _, state = memory(torch.randn(ROWS, 5, DIM), state=state)  # and the 2 that waited
    assert state.cache_store_segment.shape[-2] == 3
    assert tap.of("states_attempted") == {"it": ROWS * (10 + 7)}
    assert tap.of("states_stored") == {"it": ROWS * (8 + 4)}
    memory(torch.randn(ROWS, 3, DIM))  # too short for a chunk
    assert tap.of("states_stored") == {"it": ROWS * 12}
    assert tap.of("capture_calls") == tap.of("total_retrievals") == {"it": 3}
    assert tap.of("capture_quanta") == {"it": 4 + 3 + 2}
    assert tap.of("retrieval_quanta") == {"it": 10 + 5 + 3}


def test_a_run_has_everything_in_it(tmp_path: Path, tap: FastWeightsTap) -> None:
    fit(tmp_path, tap, made(FastWeightsModule), data=loader(8))
    # steps 0, 3 and 6 have 8 positions, the others 11; steps 1 and 5 have two passes, of which the
    # second gives the first memory 6 and 5, of which 2 waited
    first, second = PLACES
    assert tap.of("capture_calls")[first] == 8 + 2 * 2
    assert tap.of("states_attempted")[first] == ROWS * (3 * 8 + 5 * 11 + 2 * (6 + 2 + 5))
    assert tap.of("states_stored")[first] == ROWS * (3 * 8 + 5 * 8 + 2 * (4 + 4))
    # the other renews its weights after 6 positions: two stores for each pass
    assert tap.of("capture_calls")[second] == 2 * 10
    assert tap.of("states_attempted")[second] == ROWS * (3 * 8 + 7 * 11)
    assert tap.of("states_stored")[second] == ROWS * (3 * 8 + 7 * 10)
    assert tap.of("total_retrievals") == {first: 12, second: 10}
    assert tap.of("total_retrievals", "val") == dict.fromkeys(PLACES, 2)


# The monitor against the tap ----------------------------------------------------------------


def test_two_memories_at_two_places(tmp_path: Path, tap: FastWeightsTap) -> None:
    callback = CMRMonitorCallback(monitor=watching(tap, every=3))
    fit(tmp_path, tap, made(FastWeightsModule), callback, data=loader(8))
    assert callback.snapshot.step == 7
    check(callback.snapshot, tap)
    check(callback.snapshots["val"], tap, "val")
    assert callback.snapshots["val"].value("states_attempted") == 2 * 2 * ROWS * 11
    for name in COUNTED:
        live(callback.snapshot, name, set(PLACES))
    assert callback.snapshot.source("states_stored") and callback.snapshot.source(
        "total_retrievals"
    )


def test_memories_as_context(tmp_path: Path, tap: FastWeightsTap) -> None:
    """Keys and values are two views there, stacked before the rows."""
    callback = CMRMonitorCallback(monitor=watching(tap, every=3))
    # 12 ids, the last only a label; a memory's token after each whole segment of 4
    fit(tmp_path, tap, made(InContextModule), callback, data=token_loader(8, 12))
    assert tap.of("states_attempted") == dict.fromkeys(IN_CONTEXT, 8 * ROWS * (11 + 2))
    assert tap.of("states_stored") == dict.fromkeys(IN_CONTEXT, 8 * ROWS * 12)
    check(callback.snapshot, tap)


def test_a_plain_loop(tap: FastWeightsTap) -> None:
    model = made(FastWeights)
    tap.knows(model)
    methods = dict(vars(NeuralMemory))

    def attributes() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return [
            (set(state), [len(state[name]) for name in hooks])
            for state in map(vars, model.modules())
        ]

    untouched = attributes()
    monitor = watching(tap, model=model)
    before: dict[str, float] = {}
    for length, parts in ((8, 1), (9, 1), (3, 1), (12, 3), (1, 1), (2, 2)):
        with monitor.track_performance():
            model(torch.randn(ROWS, length, DIM), parts).square().mean().backward()
        for name in COUNTED:
            same(monitor.snapshot, tap, name)
            now = tap.whole(name)
            window = monitor.snapshot.value(name, over="window")
            assert window == now - before.get(name, 0.0), (length, name)
            before[name] = now
    check(monitor.snapshot, tap)
    monitor.detach()
    with monitor.track_performance():
        model(torch.randn(ROWS, 8, DIM))
    assert monitor.snapshot.value("states_attempted") == before["states_attempted"]
    assert dict(vars(NeuralMemory)) == methods
    assert attributes() == untouched


def test_gradients_are_the_same() -> None:
    """The memory takes gradients inside its forward, where a wrapper must not be in the way."""
    taken = []
    for watched in (False, True):
        model = made(FastWeights)
        monitor = CMRPerformanceMonitor({"on_monitor_error": "raise"})
        if watched:
            monitor.attach(model)
        torch.manual_seed(2)
        with monitor.track_performance():
            model(torch.randn(ROWS, 10, DIM), parts=2).square().mean().backward()
        monitor.detach()
        taken.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    alone, watched_ones = taken
    assert set(alone) == set(watched_ones) and len(alone) > 10
    assert all(torch.equal(alone[name], watched_ones[name]) for name in alone)
