"""A package's KNN memories, unchanged, against an independent count.

The memories are plain objects that say nothing of what they do. They are found in an attribute, or
only when a forward takes one as an argument.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.needed import needed

needed("memorizing_transformers_pytorch")

import pytorch_lightning as pl
import torch
from memorizing_transformers_pytorch import KNNMemory

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor
from cmr_monitor_callbacks.snapshot import Snapshot
from tests.memory_models.knn import (
    ASKED,
    DIM,
    HEADS,
    LENGTH,
    MOST,
    OWNED,
    PASSED,
    ROWS,
    SLOT_BYTES,
    TOKENS,
    ClosureModule,
    ContextModule,
    KNNModule,
    OwnedModule,
    loader,
    network,
)
from tests.memory_models.knn_tap import KNNTap
from tests.memory_models.tally import QUANTUM, TallyCallback, live, same, same_mean
from tests.models import trainer

LOOSE = ("layers.0.0.fn", "layers.2.0.fn")
"""Layers of memories that are passed to the network where that is what is watched."""
COUNTED = (
    "states_attempted",
    "states_captured",
    "states_stored",
    "states_rejected",
    "capture_calls",
    "eviction_count",
    "states_cleared",
    "total_retrievals",
    "entries_retrieved",
    "retrieval_hits",
)
MEANS = {
    "storage_efficiency": ("states_stored", "states_captured", 1.0),
    "capture_efficiency": ("states_captured", "states_attempted", 1.0),
    "eviction_rate": ("eviction_count", "states_stored", 1.0),
    "retrieval_hit_rate": ("retrieval_hits", "slots_asked", 1.0),
    "avg_capture_time": ("capture_quanta", "capture_calls", QUANTUM),
    "avg_retrieval_time": ("retrieval_quanta", "total_retrievals", QUANTUM),
}
NOT_KNOWN = (
    "states_considered",
    "selection_rate",
    "reconstruction_calls",
    "reconstruction_quality",
    "cache_hits",
    "cache_hit_rate",
)


def watching(
    tap: KNNTap, every: int = 1, model: torch.nn.Module | None = None
) -> CMRPerformanceMonitor:
    config = {"log_every_n_steps": every, "on_monitor_error": "raise"}
    return CMRPerformanceMonitor(config, model=model, clock=tap.clock)


def fit(
    kind: type[KNNModule], folder: Path, tap: KNNTap, *first: pl.Callback, validate: bool = False
) -> Any:
    """12 steps of two passes each (six with `ContextModule`), with validation in between."""
    pl.seed_everything(1, verbose=False)
    module = kind(folder)
    fitter = trainer(folder, [*first, TallyCallback(tap)], logger=False, val_check_interval=6)
    fitter.fit(module, loader(12), loader(2, seed=5) if validate else None)
    assert fitter.global_step == 12
    return module


def check(snapshot: Snapshot, tap: KNNTap, stage: str = "train") -> None:
    for name in COUNTED:
        same(snapshot, tap, name, stage)
    for name, (total, per, unit) in MEANS.items():
        same_mean(snapshot, tap, name, total, per, unit=unit, stage=stage)
    for name in NOT_KNOWN:
        assert math.isnan(snapshot.value(name)), name


def check_held(snapshot: Snapshot, tap: KNNTap) -> None:
    held, capacity = tap.entries(), ROWS * MOST
    assert len(held) == 2
    whole = sum(held.values())
    assert snapshot.layers("total_entries") == held
    assert snapshot.value("total_entries") == whole
    assert snapshot.layers("capacity") == dict.fromkeys(held, capacity)
    assert snapshot.value("capacity") == 2 * capacity
    assert snapshot.layers("utilization_rate") == {k: n / capacity for k, n in held.items()}
    assert snapshot.value("utilization_rate") == whole / (2 * capacity)
    sizes = {layer: n * SLOT_BYTES / 2**20 for layer, n in held.items()}
    assert snapshot.layers("memory_size_mb") == sizes
    assert snapshot.value("memory_size_mb") == whole * SLOT_BYTES / 2**20


def balance(snapshot: Snapshot, layer: str) -> float:
    """What a layer should hold by the monitor's own numbers, nothing having been there before."""
    gains, losses = (
        ("states_stored", "states_loaded"),
        (
            "eviction_count",
            "states_overwritten",
            "states_merged",
            "states_cleared",
        ),
    )
    numbers = {n: snapshot.value(n, layer=layer) for n in gains + losses}
    known = {n: 0.0 if math.isnan(value) else value for n, value in numbers.items()}
    return sum(known[n] for n in gains) - sum(known[n] for n in losses)


# The tap alone ------------------------------------------------------------------------------


def test_the_tap_counts_what_can_be_counted_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = KNNTap(monkeypatch, ("only",))
    memory = KNNMemory(
        dim=DIM,
        max_memories=MOST,
        num_indices=ROWS,
        memmap_filename=str(tmp_path / "m"),
        multiprocessing=False,
    )

    def add(length: int) -> None:
        memory.add(torch.randn(ROWS, length, 2, DIM))
        assert tap.entries() == {"only": sum(knn.index.ntotal for knn in memory.knns)}

    queries = torch.randn(ROWS, HEADS, 4, DIM)
    memory.search(queries, ASKED)
    slots = ROWS * HEADS * 4 * ASKED
    assert tap.of("entries_retrieved") == {}
    assert tap.of("slots_asked") == {"only": slots}
    for length in (2, 6, 6, 6):
        add(length)
    assert tap.entries() == {"only": ROWS * 20}
    assert tap.of("eviction_count") == {}
    memory.search(queries, ASKED)
    assert tap.of("entries_retrieved") == tap.of("retrieval_hits") == {"only": slots}
    assert tap.of("total_retrievals") == {"only": 2}
    add(6)  # one too many: the index is wiped, and the new are in it
    assert tap.of("eviction_count") == {"only": ROWS * 20}
    assert tap.entries() == {"only": ROWS * 6}
    memory.clear([1])
    assert (tap.of("states_cleared"), tap.entries()) == ({"only": 6}, {"only": 6})
    memory.clear()
    assert (tap.of("states_cleared"), tap.of("clears")) == ({"only": 12}, {"only": 2})
    add(MOST + 4)  # the oldest of them are not taken
    assert tap.of("states_attempted") == {"only": ROWS * (26 + MOST + 4)}
    assert tap.of("states_stored") == {"only": ROWS * (26 + MOST)}
    assert tap.of("states_rejected") == {"only": ROWS * 4}
    assert tap.of("capture_calls") == {"only": 6}
    assert tap.of("capture_quanta") == {"only": 6 * 2}
    assert tap.of("retrieval_quanta") == {"only": 1 + 2}


@pytest.mark.parametrize(
    ("kind", "layers", "adds"),
    [
        (OwnedModule, OWNED, 2 * 12),
        (ClosureModule, PASSED, 2 * 12),
        (ContextModule, PASSED, 6 * 12),
    ],
)
def test_a_run_has_everything_in_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[KNNModule],
    layers: tuple[str, ...],
    adds: int,
) -> None:
    tap = KNNTap(monkeypatch, layers)
    module = fit(kind, tmp_path, tap, validate=kind is OwnedModule)
    assert tap.of("total_retrievals") == dict.fromkeys(layers, adds)
    assert 0 < tap.of("capture_calls")[layers[0]] < adds, "some passes only read"
    positions = ROWS * (LENGTH - 1)
    calls = tap.of("capture_calls")
    assert tap.of("states_attempted") == {k: n * positions for k, n in calls.items()}
    assert tap.of("slots_asked") == dict.fromkeys(layers, adds * positions * HEADS * ASKED)
    for name in ("eviction_count", "retrieval_hits", "states_cleared"):
        assert tap.whole(name) > 0, name
        assert len(set(tap.of(name).values())) == len(tap.of(name)), "no layer is like the other"
    assert tap.whole("retrieval_hits") < tap.whole("slots_asked")
    if kind is ContextModule:
        assert tap.entries() == {} and module.left == [0] * 12, "each is gone when its step is over"
        return
    for layer in layers:
        stored, *gone = (
            tap.everywhere(name, layer)
            for name in ("states_stored", "eviction_count", "states_cleared")
        )
        assert stored - sum(gone) == tap.entries()[layer] > 0
    if kind is OwnedModule:
        held = [sum(knn.index.ntotal for knn in memory.knns) for memory in module.memories]
        assert list(tap.entries().values()) == held
        assert tap.whole("capture_calls", "val") > 0


# The monitor against the tap ----------------------------------------------------------------


def test_memories_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = KNNTap(monkeypatch, OWNED)
    callback = CMRMonitorCallback(monitor=watching(tap, every=5))
    module = fit(OwnedModule, tmp_path, tap, callback)
    snapshot = callback.snapshot
    assert snapshot.step == 11
    check(snapshot, tap)
    check_held(snapshot, tap)
    for layer in OWNED:
        assert balance(snapshot, layer) == tap.entries()[layer]
    for name in ("states_stored", "eviction_count", "total_retrievals", "total_entries"):
        live(snapshot, name, set(OWNED))
        assert snapshot.source(name), name
    assert [type(memory) for memory in module.memories] == [KNNMemory, KNNMemory]


def test_validation_is_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = KNNTap(monkeypatch, OWNED)
    callback = CMRMonitorCallback(monitor=watching(tap, every=5))
    fit(OwnedModule, tmp_path, tap, callback, validate=True)
    check(callback.snapshot, tap)
    validation = callback.snapshots["val"]
    for name in set(COUNTED) - {"states_cleared"}:
        same(validation, tap, name, "val")
    assert validation.value("total_retrievals") == 2 * 2 * 2
    check_held(validation, tap)
    check_held(callback.snapshot, tap)


def test_memories_that_only_a_function_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = KNNTap(monkeypatch, PASSED)
    callback = CMRMonitorCallback(monitor=watching(tap, every=5))
    fit(ClosureModule, tmp_path, tap, callback)
    check(callback.snapshot, tap)
    check_held(callback.snapshot, tap)
    assert callback.snapshot.value("clear_count") == tap.whole("clears") == 2
    for layer in PASSED:
        assert balance(callback.snapshot, layer) == tap.entries()[layer]


def test_memories_that_last_for_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = KNNTap(monkeypatch, PASSED)
    callback = CMRMonitorCallback(monitor=watching(tap, every=5))
    module = fit(ContextModule, tmp_path, tap, callback)
    snapshot = callback.snapshot
    # what went with a memory that ended is cleared, or it would be nowhere
    for name in set(COUNTED) - {"states_cleared"}:
        same(snapshot, tap, name)
    for name, (total, per, unit) in MEANS.items():
        same_mean(snapshot, tap, name, total, per, unit=unit)
    assert module.left == [0] * 12, "the monitor keeps none alive"
    assert not any(snapshot.layers("total_entries").values())
    for layer in PASSED:
        assert balance(snapshot, layer) == 0
        assert snapshot.value("states_cleared", layer=layer) > tap.of("states_cleared").get(
            layer, 0
        )


def test_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number after every step; the network alone is watched, and takes the memories."""
    tap = KNNTap(monkeypatch, LOOSE)
    torch.manual_seed(1)
    net = network(tmp_path)
    memories = net.create_knn_memories(batch_size=ROWS)
    before = [{**vars(memory), "knns": list(memory.knns)} for memory in memories]
    methods = dict(vars(KNNMemory))
    monitor = watching(tap, model=net)
    retrieved = 0.0
    # the last three fill an index at once, and more than that
    for length in (5, 3, 8, 1, 9, 5, MOST + 4, 2, MOST + 4):
        with monitor.track_performance():
            net(torch.randint(1, TOKENS, (ROWS, length)), memories)
        check_held(monitor.snapshot, tap)
        for name in COUNTED:
            same(monitor.snapshot, tap, name)
        found = tap.whole("entries_retrieved") - retrieved
        retrieved += found
        assert monitor.snapshot.value("entries_retrieved", over="window") == found
        for layer in LOOSE:
            assert balance(monitor.snapshot, layer) == tap.entries()[layer]
    check(monitor.snapshot, tap)
    # twice the four oldest of each row found no place
    assert monitor.snapshot.layers("states_rejected") == dict.fromkeys(LOOSE, 2 * 4 * ROWS)
    monitor.detach()
    stored = monitor.snapshot.value("states_stored")
    with monitor.track_performance():
        net(torch.randint(1, TOKENS, (ROWS, 5)), memories)
    assert monitor.snapshot.value("states_stored") == stored
    assert [set(vars(memory)) for memory in memories] == [set(state) for state in before]
    for memory, state in zip(memories, before, strict=True):
        assert vars(memory)["db"] is state["db"]
        assert all(a is b for a, b in zip(vars(memory)["knns"], state["knns"], strict=True))
    assert dict(vars(KNNMemory)) == methods
