"""A research model with a layered memory, which nobody instrumented, against an independent count.

No line of the model knows of the monitor. What the model's own statistics say is partly dead and
partly wrong, so the numbers can only come from what its methods really do.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from cmr_monitor_callbacks import CMRMonitorCallback, CMRPerformanceMonitor, InMemorySink
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.snapshot import Snapshot
from tests.memory_models import cmr_like
from tests.memory_models.cmr_like import (
    HIDDEN,
    INTERVENTIONS,
    LENGTH,
    ROWS,
    TARGETS,
    CMRLikeModel,
    CMRLikeModule,
    HeldModel,
    LayeredMemoryBuffer,
    MemoryEntry,
    PassedModel,
    ScoreBuffer,
    ScoreModel,
    loader,
    sequences,
)
from tests.memory_models.cmr_tap import ENTRY_BYTES, CMRTap
from tests.memory_models.tally import QUANTUM, TallyCallback, live, same, same_mean
from tests.models import trainer

PER_LAYER, TOTAL = 6, 14
VALIDATION = 6
COUNTED = (
    "states_considered",
    "states_attempted",
    "states_captured",
    "states_stored",
    "states_rejected",
    "capture_calls",
    "eviction_count",
    "states_loaded",
    "states_cleared",
    "clear_count",
    "total_retrievals",
    "entries_retrieved",
    "cache_hits",
    "reconstruction_calls",
    "total_reconstructions",
)
MEANS = {
    "storage_efficiency": ("states_stored", "states_captured", 1.0),
    "capture_efficiency": ("states_captured", "states_attempted", 1.0),
    "selection_rate": ("states_attempted", "states_considered", 1.0),
    "eviction_rate": ("eviction_count", "states_stored", 1.0),
    "cache_hit_rate": ("cache_hits", "cached_retrievals", 1.0),
    "avg_capture_time": ("capture_quanta", "capture_calls", QUANTUM),
    "avg_retrieval_time": ("retrieval_quanta", "total_retrievals", QUANTUM),
    "avg_reconstruction_time": ("reconstruction_quanta", "reconstruction_calls", QUANTUM),
    "memories_used": ("used", "total_reconstructions", 1.0),
    "reconstruction_quality": ("rating", "rated", 1.0),
}


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> CMRTap:
    return CMRTap(monkeypatch)


def watching(tap: CMRTap, every: int = 1, model: nn.Module | None = None) -> CMRPerformanceMonitor:
    config = {"log_every_n_steps": every, "on_monitor_error": "raise"}
    return CMRPerformanceMonitor(config, model=model, clock=tap.clock)


def made(**settings: Any) -> CMRLikeModel:
    torch.manual_seed(3)
    return CMRLikeModel(**settings)


def batch(number: int) -> torch.Tensor:
    ids = sequences(50)[:][0]
    return ids[number * ROWS : (number + 1) * ROWS]


def an_entry(layer: int, relevance: float = 0.9) -> MemoryEntry:
    state = torch.ones(HIDDEN)
    return MemoryEntry(state, state[: HIDDEN // 2].half(), layer, 99, 0, relevance, 0)


def run(
    folder: Path, tap: CMRTap, callback: CMRMonitorCallback | None = None, **settings: Any
) -> tuple[CMRLikeModule, TallyCallback]:
    """40 steps of two batches of two passes, four validations in between, sanity check before."""
    pl.seed_everything(3, verbose=False)
    module = CMRLikeModule(folder, **settings)
    steps = TallyCallback(tap, look=tap.entries)
    callbacks = [steps] if callback is None else [callback, steps]
    fitter = trainer(
        folder,
        callbacks,
        accumulate_grad_batches=2,
        val_check_interval=20,
        num_sanity_val_steps=1,
        logger=False,
    )
    fitter.fit(module, loader(80), loader(VALIDATION, seed=5))
    assert fitter.global_step == 40
    return module, steps


def check(snapshot: Snapshot, tap: CMRTap, stage: str = "train") -> None:
    for name in COUNTED:
        same(snapshot, tap, name, stage)
    for name, (total, per, unit) in MEANS.items():
        same_mean(snapshot, tap, name, total, per, unit=unit, stage=stage)


def check_held(snapshot: Snapshot, tap: CMRTap, limit: int = TOTAL) -> None:
    held = tap.entries()
    assert snapshot.layers("total_entries") == held
    assert snapshot.value("total_entries") == sum(held.values())
    assert snapshot.layers("capacity") == dict.fromkeys(held, PER_LAYER)
    capacity = min(limit, PER_LAYER * len(held))
    assert snapshot.value("capacity") == capacity
    assert snapshot.layers("utilization_rate") == {k: n / PER_LAYER for k, n in held.items()}
    assert snapshot.value("utilization_rate") == sum(held.values()) / capacity
    sizes = {layer: n * ENTRY_BYTES / 2**20 for layer, n in held.items()}
    assert snapshot.layers("memory_size_mb") == sizes
    assert snapshot.value("memory_size_mb") == sum(held.values()) * ENTRY_BYTES / 2**20


def balance(snapshot: Snapshot, layer: Any) -> float:
    """What a layer should hold more than when it was attached, by the monitor's own numbers."""
    signs = {"states_stored": 1, "states_loaded": 1} | dict.fromkeys(
        ("eviction_count", "states_overwritten", "states_merged", "states_cleared"), -1
    )
    numbers = {name: snapshot.value(name, layer=layer) for name in signs}
    return sum(sign * numbers[n] for n, sign in signs.items() if not math.isnan(numbers[n]))


# The tap alone ------------------------------------------------------------------------------


def test_the_tap_counts_what_can_be_counted_by_hand(tap: CMRTap) -> None:
    buffer = LayeredMemoryBuffer(max_entries_per_layer=2, max_total_entries=3)
    state = torch.zeros(HIDDEN)

    def store(layer: int, relevance: float) -> bool:
        return buffer.store_state(
            hidden_state=state, layer_idx=layer, position_idx=0, relevance_score=relevance
        )

    assert store(1, 0.6) and store(1, 0.7) and store(2, 0.5)
    assert not store(2, 0.4), "not relevant enough at all"
    assert not store(1, 0.55), "the layer is full of better ones"
    assert store(1, 0.65), "in place of 0.6"
    assert store(2, 0.9), "all is full: in place of the worst, of the same layer"
    assert store(4, 0.68), "all is full: in place of layer 1's 0.65"
    assert tap.of("states_attempted") == {1: 4, 2: 3, 4: 1}
    assert tap.of("states_stored") == {1: 3, 2: 2, 4: 1}
    assert tap.of("states_rejected") == {1: 1, 2: 1}
    assert tap.of("eviction_count") == {1: 2, 2: 1}
    assert tap.entries() == {1: 1, 2: 1, 4: 1}
    assert tap.quanta() == 1000 / QUANTUM + 8 * 1 + 3 * 2

    assert [len(buffer.retrieve_by_layer(layer)) for layer in (1, 2, 9)] == [1, 1, 0]
    assert len(buffer.retrieve_top_k_relevant(2)) == 2
    assert tap.of("total_retrievals") == {1: 1, 2: 1, 9: 1}
    assert tap.whole("total_retrievals") == 4
    assert tap.whole("entries_retrieved") == 4
    assert tap.whole("retrieval_quanta") == 3 * 2 + 5

    buffer._insert_entry(an_entry(2))
    buffer.clear_sequence(99)
    buffer.clear_layer(1)
    buffer._insert_entry(an_entry(1))
    buffer.clear_all()
    assert tap.of("states_loaded") == {1: 1, 2: 1}
    assert tap.of("states_cleared") == {1: 2, 2: 2, 4: 1}
    assert (tap.of("clear_count"), tap.whole("clear_count")) == ({1: 1}, 3)
    assert tap.of("eviction_count") == {1: 2, 2: 1}, "what is cleared is not evicted"
    assert set(tap.entries().values()) == {0}


def test_the_tap_counts_passes_by_hand(tap: CMRTap) -> None:
    model = made(max_total_entries=1000, max_entries_per_layer=1000)
    for parameter in model.relevance_scorer.parameters():
        nn.init.constant_(parameter, 1.0)
    nn.init.zeros_(model.relevance_scorer.scorer[1].weight)  # all are the same, and relevant
    begun = tap.quanta()
    for number in range(3):
        model.memory_enabled = number < 2  # the last finds as many entries as the second
        model(batch(0))
    positions = 2.0 * ROWS * LENGTH
    for name in ("states_considered", "states_attempted", "states_stored"):
        assert tap.of(name) == dict.fromkeys(TARGETS, positions), name
    assert tap.entries() == dict.fromkeys(TARGETS, positions)
    assert tap.of("capture_calls") == dict.fromkeys(TARGETS, 2)
    stores = {layer: 2 * (layer + 1) + positions for layer in TARGETS}
    assert tap.of("capture_quanta") == stores
    assert tap.of("total_retrievals") == tap.of("cached_retrievals") == {2: 1, 4: 3}
    assert tap.of("entries_retrieved") == {2: 5, 4: 15}
    assert tap.of("cache_hits") == {4: 1}
    assert tap.of("retrieval_quanta") == {2: 3, 4: 3 + 3 + 1}
    assert tap.of("reconstruction_calls") == tap.of("total_reconstructions") == {2: 1, 4: 3}
    assert tap.of("used") == {2: 4, 4: 12}
    assert tap.of("rating") == {2: 6 / 8, 4: 3 * 8 / 8}
    assert tap.of("reconstruction_quanta") == {2: 7, 4: 21}
    assert tap.quanta() - begun == sum(stores.values()) + 10 + 28


@pytest.mark.parametrize("strategy", ["relevance", "lru"])
def test_the_run_has_everything_in_it(tmp_path: Path, tap: CMRTap, strategy: str) -> None:
    """What the comparison with the monitor is about really happens, in every layer."""
    module, steps = run(tmp_path, tap, eviction_strategy=strategy)
    for name in COUNTED:
        assert tap.whole(name) > 0, name
    for name in (*COUNTED[:7], "states_cleared"):
        assert set(tap.of(name)) == set(TARGETS), name
    for name in (*COUNTED[12:], "rating", "rated", "used"):
        assert set(tap.of(name)) == set(INTERVENTIONS), name
    assert tap.whole("total_reconstructions") < tap.whole("reconstruction_calls")
    assert tap.whole("cache_hits") < tap.whole("cached_retrievals")
    assert tap.whole("cached_retrievals") < tap.whole("total_retrievals")
    assert tap.of("rated") != tap.of("reconstruction_calls")
    assert tap.whole("clear_count") == 4 and tap.of("clear_count") == {2: 1}
    assert 0 < sum(tap.of("capture_calls", "val").values()) == VALIDATION * len(TARGETS)
    assert tap.whole("capture_calls", "sanity") == len(TARGETS)
    assert tap.whole("capture_calls") == 160 * len(TARGETS)
    assert tap.entries() == {
        layer: len(entries) for layer, entries in module.net.memory_buffer.layer_buffers.items()
    }
    assert tap.entries() == {layer: tap.should_be(layer) for layer in TARGETS}
    assert steps.looked[29] != tap.entries()
    others = set(COUNTED) - {"eviction_count"}
    assert tap.of("eviction_count") not in [tap.of(name) for name in others]
    # a store in one layer evicts in another
    assert any(
        tap.of("eviction_count")[k] + tap.of("states_cleared")[k]
        != tap.of("states_stored")[k] + tap.of("states_loaded").get(k, 0)
        for k in TARGETS
    )
    stats = module.net.performance_stats
    assert stats["total_captures"] != tap.whole("states_captured")
    assert stats["total_reconstructions"] != tap.whole("total_reconstructions")
    assert module.net.memory_buffer.stats["total_evictions"] != tap.whole("eviction_count")


# The monitor against the tap ----------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["relevance", "lru"])
def test_every_number_of_a_fit_is_the_taps(tmp_path: Path, tap: CMRTap, strategy: str) -> None:
    callback = CMRMonitorCallback(monitor=watching(tap, every=7))
    run(tmp_path, tap, callback, eviction_strategy=strategy)
    snapshot = callback.snapshot
    assert snapshot.step == 39
    check(snapshot, tap)
    check_held(snapshot, tap)
    for name in COUNTED[:7]:
        live(snapshot, name, set(TARGETS))
    for name in COUNTED[13:]:
        live(snapshot, name, set(INTERVENTIONS))
    for name in ("states_stored", "total_entries", "entries_retrieved", "reconstruction_quality"):
        assert snapshot.source(name), name


def test_validation_is_apart(tmp_path: Path, tap: CMRTap) -> None:
    callback = CMRMonitorCallback(monitor=watching(tap, every=7))
    run(tmp_path, tap, callback, eviction_strategy="lru")
    assert "sanity" not in callback.snapshots
    snapshot = callback.snapshots["val"]
    check(snapshot, tap, "val")
    assert snapshot.value("capture_calls") == VALIDATION * len(TARGETS)
    check_held(snapshot, tap)


def test_every_window_holds_what_happened_in_it(tmp_path: Path, tap: CMRTap) -> None:
    monitor = watching(tap, every=7)
    sink = InMemorySink()
    monitor.sinks.append(sink)
    _, steps = run(tmp_path, tap, CMRMonitorCallback(monitor=monitor))
    shown = {r.snapshot.step: r.snapshot for r in sink.reports if r.snapshot.stage == "train"}
    assert list(shown) == [6, 13, 20, 27, 34, 39]
    before: dict[str, dict[Any, float]] = {}
    for step, snapshot in shown.items():
        now = steps.after[step]
        for name in COUNTED:
            counted = now.get(name, {})
            run_so_far = {k: n for k, n in snapshot.layers(name).items() if n}
            assert run_so_far == {k: n for k, n in counted.items() if k is not None and n}, name
            window = {k: n - before.get(name, {}).get(k, 0) for k, n in counted.items()}
            seen = {k: n for k, n in snapshot.layers(name, over="window").items() if n}
            assert seen == {k: n for k, n in window.items() if k is not None and n}, (step, name)
            whole = snapshot.value(name, over="window")
            assert (0 if math.isnan(whole) else whole) == sum(window.values()), (step, name)
        took, calls = (
            sum(now[name].values()) - sum(before.get(name, {}).values())
            for name in ("capture_quanta", "capture_calls")
        )
        mean = snapshot.value("avg_capture_time", over="window")
        assert mean == pytest.approx(took * QUANTUM / calls, rel=1e-9)
        if step != 39:  # a validation comes between that batch and the end of the window
            assert snapshot.layers("total_entries") == steps.looked[step]
        before = now


def test_a_model_trains_the_same_with_and_without(tmp_path: Path) -> None:
    results = []
    for callback in (None, CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})):
        with pytest.MonkeyPatch.context() as patch:
            module, _ = run(tmp_path, CMRTap(patch), callback)
        results.append((module.state_dict(), module.net.memory_buffer.get_all_entries()))
    (weights, entries), (watched, kept) = results
    assert all(torch.equal(weights[name], watched[name]) for name in weights)
    assert [e.layer_idx for e in entries] == [e.layer_idx for e in kept] != []
    for one, other in zip(entries, kept, strict=True):
        assert torch.equal(one.hidden_state, other.hidden_state)


def test_a_recompute_counts_nothing(tmp_path: Path, tap: CMRTap) -> None:
    callback = CMRMonitorCallback(monitor=watching(tap, every=7))
    module, _ = run(tmp_path, tap, callback, recompute=True)
    asked = module.net.memory_retriever.retrieval_stats["total_retrievals"]
    assert asked > tap.everywhere("cached_retrievals", 2) + tap.everywhere("cached_retrievals", 4)
    check(callback.snapshot, tap)


# Without Lightning --------------------------------------------------------------------------


def test_a_plain_loop_has_the_same_numbers_and_they_balance(tap: CMRTap) -> None:
    model = made()
    model(batch(40))
    at_attach = tap.entries()
    assert sum(at_attach.values()) > 0
    tap.begin("train")
    tap.durations.clear()
    monitor = watching(tap, model=model)
    for number in range(12):
        with monitor.track_performance():
            model(batch(number), return_memory_info=True)
            if number == 8:
                model.memory_buffer.clear_layer(4)
        check_held(monitor.snapshot, tap)
        for layer in TARGETS:
            held = at_attach.get(layer, 0) + balance(monitor.snapshot, layer)
            assert held == tap.held[layer], (number, layer)
    check(monitor.snapshot, tap)
    times = [quanta * QUANTUM for quanta in tap.durations]
    assert monitor.get_stats()["metrics"]["capture_times"] == times
    monitor.detach()
    told = monitor.snapshot.value("capture_calls")
    with monitor.track_performance():
        model(batch(20))
    assert monitor.snapshot.value("capture_calls") == told == 12 * len(TARGETS)


def test_what_changes_behind_the_buffers_back_is_loaded_or_cleared(tap: CMRTap) -> None:
    model = made(max_entries_per_layer=50, max_total_entries=500)
    model.reconstruction_enabled = False  # its cache would keep entries that are gone
    for layer in (1, 1, 1, 2):
        model.memory_buffer._insert_entry(an_entry(layer))
    monitor = watching(tap, model=model)

    def numbers(name: str) -> dict[Any, float]:
        return {k: n for k, n in monitor.snapshot.layers(name).items() if n}

    buffer = model.memory_buffer
    with monitor.track_performance():
        pass
    assert numbers("total_entries") == {1: 3, 2: 1}
    assert numbers("states_loaded") == {}, "what was there before is nobody's news"

    with monitor.track_performance():
        buffer.layer_buffers[2].append(an_entry(2))
        buffer.layer_buffers[4] += [an_entry(4), an_entry(4)]
    assert numbers("states_loaded") == {2: 1, 4: 2}
    assert numbers("total_entries") == {1: 3, 2: 2, 4: 2}

    with monitor.track_performance():
        buffer.layer_buffers[1].clear()
    assert numbers("states_cleared") == {1: 3}
    assert numbers("total_entries") == {2: 2, 4: 2}

    with monitor.track_performance():
        buffer.layer_buffers = defaultdict(list, {1: [an_entry(1)], 4: [an_entry(4)]})
    # entries are counted, not compared: past the buffer's methods the net is seen
    assert numbers("states_cleared") == {1: 3, 2: 2, 4: 1}
    assert numbers("states_loaded") == {1: 1, 2: 1, 4: 2}
    assert numbers("total_entries") == {1: 1, 4: 1}

    other = LayeredMemoryBuffer(50, 500)
    for layer in (1, 2, 2):
        other._insert_entry(an_entry(layer))
    with monitor.track_performance():
        model.memory_buffer = model.memory_retriever.memory_buffer = other
    assert numbers("states_cleared") == {1: 4, 2: 2, 4: 2}
    assert numbers("states_loaded") == {1: 2, 2: 3, 4: 2}
    assert numbers("total_entries") == {1: 1, 2: 2}

    assert numbers("states_stored") == numbers("eviction_count") == numbers("clear_count") == {}
    with monitor.track_performance():  # the new one is watched as the old one was
        model(batch(0))
    assert numbers("states_stored") == tap.of("states_stored") != {}
    stored = tap.of("states_stored")
    held = {layer: len(entries) for layer, entries in other.layer_buffers.items()}
    assert numbers("total_entries") == held
    assert held == {1: 1 + stored[1], 2: 2 + stored[2], 4: stored[4]}
    monitor.detach()


def test_a_buffer_of_bounded_deques_and_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(5.0)
    monkeypatch.setattr(cmr_like, "work", lambda quanta: clock.advance(quanta * QUANTUM))
    model = ScoreModel()
    config = {"log_every_n_steps": 1, "on_monitor_error": "raise"}
    monitor = CMRPerformanceMonitor(config, model=model, clock=clock)
    for _ in range(6):
        with monitor.track_performance():
            model(torch.randn(3, HIDDEN))
    shown = monitor.snapshot
    for name in ("states_attempted", "states_captured", "states_stored", "capture_calls"):
        assert shown.layers(name) == {"high": 18, "low": 6}, name
    assert shown.layers("states_rejected") == {"high": 0, "low": 0}
    assert shown.layers("eviction_count") == {"high": 14, "low": 2}
    assert shown.layers("total_entries") == {"high": 4, "low": 4}
    assert shown.layers("memory_size_mb") == dict.fromkeys(("high", "low"), 4 * HIDDEN * 4 / 2**20)
    assert shown.layers("avg_capture_time") == {"high": 3 * QUANTUM, "low": 2 * QUANTUM}
    assert shown.value("avg_capture_time") == (18 * 3 + 6 * 2) * QUANTUM / 24
    for name in ("states_considered", "selection_rate", "total_retrievals", "cache_hits"):
        assert math.isnan(shown.value(name)), name
    with monitor.track_performance():
        model.buffer.layer_buffers["low"].clear()
    assert monitor.snapshot.layers("eviction_count") == {"high": 14, "low": 2}
    assert monitor.snapshot.value("states_cleared", layer="low") == 4
    monitor.detach()


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda buffer: [buffer],
    "dict": lambda buffer: {"memory": buffer},
    "deque": lambda buffer: deque([buffer]),
    "namespace": lambda buffer: SimpleNamespace(memory=buffer),
    "nested": lambda buffer: {"parts": [SimpleNamespace(memory=(None, buffer))]},
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_a_buffer_is_found_in_a_plain_container(tap: CMRTap, kind: str) -> None:
    buffer = ScoreBuffer(4)
    model = HeldModel(HOLDERS[kind](buffer), lambda: buffer)
    monitor = watching(tap, model=model)
    for _ in range(7):
        with monitor.track_performance():
            model(torch.randn(3, HIDDEN))
    assert monitor.snapshot.layers("states_stored") == {"low": 7}
    assert monitor.snapshot.layers("eviction_count") == {"low": 3}
    assert monitor.snapshot.layers("total_entries") == {"low": 4}
    monitor.detach()
    assert set(vars(buffer)) == {"max_entries_per_layer", "layer_buffers"}


def test_a_buffer_that_is_only_passed(tap: CMRTap) -> None:
    torch.manual_seed(3)
    model, buffer = PassedModel(), LayeredMemoryBuffer(6, 14)
    before = set(vars(buffer))
    monitor = watching(tap, model=model)
    for _ in range(5):
        with monitor.track_performance(), torch.no_grad():
            model(torch.randn(4, HIDDEN), buffer)
    shown = monitor.snapshot
    # 0.5 to 0.8 five times over, for six places: only what is better comes in
    for name in ("states_attempted", "states_stored", "states_rejected", "eviction_count"):
        same(shown, tap, name)
    assert shown.layers("states_attempted") == shown.layers("capture_calls") == {3: 20}
    assert shown.layers("total_entries") == {3: 6}
    assert shown.layers("total_retrievals") == {3: 5}
    assert shown.layers("entries_retrieved") == {3: 0 + 3 * 4}
    assert shown.layers("avg_retrieval_time") == {3: 2 * QUANTUM}
    assert shown.layers("reconstruction_calls") == {3: 5}
    assert shown.layers("avg_reconstruction_time") == {3: 3 * QUANTUM}
    for name in ("reconstruction_quality", "memories_used", "total_reconstructions", "cache_hits"):
        assert math.isnan(shown.value(name)), name
    monitor.detach()
    assert set(vars(buffer)) == before


def test_a_cache_counter_that_never_moves_is_no_data(tap: CMRTap) -> None:
    model = made()
    model.memory_retriever.cache_size = 0  # nothing stays in the cache
    monitor = watching(tap, model=model)
    for number in range(4):
        with monitor.track_performance():
            model(batch(number))
    assert tap.whole("cached_retrievals") > 0 == tap.whole("cache_hits")
    for name in ("cache_hits", "cache_hit_rate"):
        assert math.isnan(monitor.snapshot.value(name)), name
        assert monitor.snapshot.layers(name) == {}, name
    same(monitor.snapshot, tap, "total_retrievals")
    monitor.detach()


# The user's own monitor attribute -----------------------------------------------------------


@pytest.mark.parametrize("assigned", ["before", "after"])
def test_the_models_monitor_replaced_by_ours_counts_nothing_twice(
    tap: CMRTap, assigned: str
) -> None:
    model = made()
    monitor = watching(tap)
    if assigned == "before":
        model.performance_monitor = monitor
    monitor.attach(model)
    if assigned == "after":
        model.performance_monitor = monitor
    for number in range(10):
        with monitor.track_performance():
            model(batch(number), return_memory_info=True)
            if number == 8:
                model.memory_buffer.clear_layer(4)
    for name in set(COUNTED) - {"states_loaded"}:
        same(monitor.snapshot, tap, name)
    for name, (total, per, unit) in MEANS.items():
        same_mean(monitor.snapshot, tap, name, total, per, unit=unit)
    monitor.detach()


def test_the_callbacks_own_monitor_assigned_to_the_model(tmp_path: Path, tap: CMRTap) -> None:
    pl.seed_everything(3, verbose=False)
    callback = CMRMonitorCallback(monitor=watching(tap, every=7))
    module = CMRLikeModule()
    module.net.performance_monitor = callback.monitor
    steps = TallyCallback(tap)
    trainer(tmp_path, [callback, steps], logger=False).fit(module, loader(10))
    for name in set(COUNTED) - {"states_loaded", "states_cleared", "clear_count"}:
        same(callback.snapshot, tap, name)
    for name, (total, per, unit) in MEANS.items():
        same_mean(callback.snapshot, tap, name, total, per, unit=unit)


def test_a_monitor_that_is_only_assigned_knows_what_it_is_told(
    tap: CMRTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(10_000))
    monkeypatch.setattr(cmr_like.time, "time", lambda: float(next(seconds)))
    model = made()
    model.performance_monitor = monitor = watching(tap)
    for number in range(5):
        with monitor.track_performance():
            model(batch(number))
    told = monitor.snapshot
    assert told.layers("capture_calls") == tap.of("capture_calls")
    # the model says stored of all that it handed over: there is nothing to set it right
    assert told.layers("states_stored") == tap.of("states_attempted") != tap.of("states_stored")
    assert told.layers("avg_capture_time") == dict.fromkeys(TARGETS, 1.0)
    assert told.layers("reconstruction_calls") == tap.of("reconstruction_calls")
    assert told.value("total_reconstructions") == 0
    for name in ("states_captured", "eviction_count", "total_entries", "total_retrievals"):
        assert math.isnan(told.value(name)), name


# Nothing is left behind ---------------------------------------------------------------------


def inside(value: Any) -> Any:
    """What a container holds, by identity."""
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return list(map(id, value)) if isinstance(value, (list, tuple)) else None


def state_of(model: CMRLikeModel) -> dict[str, Any]:
    """Every attribute of everything in the model, and of its classes, by identity."""
    buffer = model.memory_buffer
    owners = {**dict(model.named_modules()), "buffer": buffer, "own": model.performance_monitor}
    return {
        **{
            f"{path}.{name}": (type(value), id(value), inside(value))
            for path, owner in owners.items()
            for name, value in vars(owner).items()
        },
        **{f"entries {k}": (type(v), id(v), inside(v)) for k, v in buffer.layer_buffers.items()},
        **{f"class {type(o).__name__}": inside(dict(vars(type(o)))) for o in owners.values()},
    }


def kept_by_a_fit(state: dict[str, Any]) -> dict[str, Any]:
    """What of `state_of` training leaves alone: names, types, hooks and classes."""
    whole = ("_hooks", "hooks")
    return {
        name: value if name.startswith("class ") or name.endswith(whole) else value[0]
        for name, value in state.items()
    }


def test_after_detach_all_is_as_before() -> None:
    model = made()
    model(batch(0))
    pickled = pickle.dumps(model)  # first: pickling leaves a cache in some classes
    before = state_of(model)
    assert before["buffer.layer_buffers"][0] is defaultdict
    assert len(before["layers.1._forward_hooks"][2]) == 1
    monitor = CMRPerformanceMonitor({"on_monitor_error": "raise"}, model=model)
    with monitor.track_performance():
        pass
    monitor.detach()
    assert state_of(model) == before
    assert pickle.dumps(model) == pickled


def test_after_a_fit_all_is_as_before(tmp_path: Path, tap: CMRTap) -> None:
    module = CMRLikeModule()
    for number in range(5):
        module.net(batch(number))
    before = kept_by_a_fit(state_of(module.net))
    tap.begin("train")
    callback = CMRMonitorCallback(monitor=watching(tap, every=3))
    trainer(tmp_path, [callback, TallyCallback(tap)], logger=False).fit(module, loader(7))
    assert callback.snapshot.value("capture_calls") == 7 * 2 * len(TARGETS)
    assert kept_by_a_fit(state_of(module.net)) == before
    assert pickle.loads(pickle.dumps(module.net)).memory_buffer.entry_count > 0


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("what", ["model", "buffer"])
def test_copies_live_by_themselves(tap: CMRTap, way: str, what: str) -> None:
    model = made()
    monitor = watching(tap, model=model)
    with monitor.track_performance():
        model(batch(0))
    original = model if what == "model" else model.memory_buffer
    twin = copy.deepcopy(original) if way == "deepcopy" else pickle.loads(pickle.dumps(original))
    held = [list(map(id, entries)) for entries in model.memory_buffer.layer_buffers.values()]
    with tap.nothing_counts(), monitor.track_performance():
        if what == "model":
            counter = twin.sequence_counter
            twin(batch(1))
            assert twin.sequence_counter == counter + 1
            twin = twin.memory_buffer
        for number in range(20):
            twin.store_state(torch.ones(HIDDEN), 1, number, 0.9 + number / 1000)
        assert len(twin.retrieve_by_layer(1)) == PER_LAYER
        twin.clear_all()
        twin.layer_buffers[1].append(an_entry(1))
    now = [list(map(id, entries)) for entries in model.memory_buffer.layer_buffers.values()]
    assert now == held, "the original's entries are the same objects in the same places"
    with monitor.track_performance():
        model(batch(2))
    check_held(monitor.snapshot, tap)
    for name in ("states_stored", "capture_calls", "total_retrievals", "states_cleared"):
        same(monitor.snapshot, tap, name)
    assert monitor.snapshot.value("capture_calls") == 2 * len(TARGETS)
    monitor.detach()


@pytest.mark.parametrize("pairs", [False, True], ids=["entries", "tuples"])
def test_what_is_evicted_or_cleared_is_not_kept_alive(tap: CMRTap, pairs: bool) -> None:
    model: Any = ScoreModel() if pairs else made()
    buffer: Any = model.buffer if pairs else model.memory_buffer
    if not pairs:
        model.reconstruction_enabled = False  # the retriever's cache keeps what it found
    monitor = watching(tap, model=model)

    def tensors() -> list[Any]:
        entries = [entry for kept in buffer.layer_buffers.values() for entry in kept]
        return [weakref.ref(e[0] if pairs else e.hidden_state) for e in entries]

    def step(number: int) -> None:
        with monitor.track_performance(), torch.no_grad():
            model(torch.randn(3, HIDDEN) if pairs else batch(number))

    step(0)
    first = tensors()
    for number in range(1, 30):
        step(number)
    gc.collect()
    last = tensors()
    gone = sum(ref() is None for ref in first)
    assert gone == len(first) - sum(any(ref() is now() for now in last) for ref in first) > 0
    with monitor.track_performance():
        if pairs:
            buffer.layer_buffers.clear()
        else:
            buffer.clear_all()
    gc.collect()
    assert [ref for ref in (*first, *last) if ref() is not None] == []
    monitor.detach()


def test_a_score_buffer_is_what_the_tests_take_it_for() -> None:
    buffer = ScoreBuffer(2)
    for number in range(3):
        assert buffer.store_state(torch.full((HIDDEN,), float(number)), "low", 0.5) is None
    assert [float(state[0]) for state, _ in buffer.layer_buffers["low"]] == [1.0, 2.0]
