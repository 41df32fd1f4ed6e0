"""Faults put into a model that nobody instrumented are found, and named right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.diagnostics import DIAGNOSTICS
from tests.memory_models.diagnosed import DIM, Diagnosed, batches, train


@dataclass
class Fault:
    """A fault, and what is to be said of it.

    Attributes:
        finds: names of the findings, with the layers that they must name (None: of the whole).
        changes: settings of the model.
        steps: of training.
        then: done to the model after training.
        each: called with the model and the step, after each.
        follows: findings that follow from the fault, and may come as well.
    """

    finds: dict[str, set[int | None]]
    changes: dict[str, Any] = field(default_factory=dict)
    steps: int = 60
    then: Callable[[Diagnosed], None] = lambda model: None
    each: Callable[[Diagnosed, int], None] = lambda model, step: None
    follows: tuple[str, ...] = ()


ALL = {1, 3, 5}


def put(state: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Diagnosed], None]:
    """Change the states of all entries of layer 3."""

    def change(model: Diagnosed) -> None:
        for entry in model.memory_buffer.layer_buffers[3]:
            entry.hidden_state = state(entry.hidden_state)

    return change


def stop_capturing(model: Diagnosed, step: int) -> None:
    if step == 19:
        model.settings.skips = (3,)


def two_hooks(model: Diagnosed) -> None:
    def save(module: nn.Module, args: Any, out: Any) -> None:
        model._capture_states(out, 1)

    model.blocks[1].register_forward_hook(save)
    model.blocks[1].register_forward_hook(save)


def tighten(model: Diagnosed, step: int) -> None:
    """The model's optimiser changes its threshold, and from then on the buffer refuses."""
    if step == 60:
        model.optimizer_stats["threshold_adjustments"] += 1
        model.settings.policy = "keep"


FAULTS = {
    "a layer that does not exist": Fault(
        {"target_layer_missing": {9}}, {"memory_layers": (1, 3, 5, 9)}
    ),
    "a layer that the forward leaves out": Fault(
        {"layer_never_runs": {4}}, {"memory_layers": (1, 3, 4, 5), "skips": (4,)}
    ),
    "interventions that never run": Fault(
        {"interventions_never_run": {None}}, {"interventions": ()}
    ),
    "a threshold that takes nothing": Fault(
        {"threshold_takes_nothing": ALL},
        {"threshold": 1.5},
        follows=("reconstructions_use_nothing",),
    ),
    "a threshold that takes all": Fault({"threshold_takes_everything": ALL}, {"threshold": 0.0}),
    "a capacity under one sequence": Fault(
        {"capacity_under_one_sequence": ALL}, {"capacity": 3}, follows=("entries_evicted_young",)
    ),
    "a buffer that refuses everything": Fault({"nothing_stored": ALL}, {"policy": "refuse"}),
    "a capacity that is never reached": Fault(
        {"capacity_never_reached": ALL},
        {"capacity": 1_000_000, "threshold": 0.95},
        steps=210,
    ),
    "a buffer that takes in little": Fault(
        {"buffer_refuses": ALL, "memory_frozen": ALL}, {"policy": "keep"}
    ),
    "a buffer that never evicts": Fault(
        {"over_capacity": ALL}, {"policy": "grow"}, follows=("retrieval_slows_with_size",)
    ),
    "entries that are gone at once": Fault({"entries_evicted_young": ALL}, {"capacity": 24}),
    "entries that are not finite": Fault(
        {"entries_nonfinite": {3}}, then=put(lambda state: state * torch.nan)
    ),
    "entries that are zero": Fault({"entries_empty": {3}}, then=put(torch.zeros_like)),
    "entries that are all the same": Fault({"duplicate_entries": ALL}, {"keeps": torch.ones_like}),
    "a relevance that is always the same": Fault(
        {"relevance_flat": ALL}, {"rates": lambda relevance: 1.0}
    ),
    "entries that nobody reads": Fault({"entries_never_read": ALL}, {"marks": False}),
    "a layer that stopped capturing": Fault({"memory_frozen": {3}}, each=stop_capturing),
    "a retrieval that finds nothing": Fault(
        {"retrieval_returns_nothing": ALL, "reconstructions_use_nothing": {None}},
        {"retrieve": {}},
        follows=("entries_never_read",),
    ),
    "a layer that nobody reads": Fault(
        {"dead_layer": {3}, "layer_not_worth_its_memory": {3}, "entries_never_read": {3}},
        {"interventions": (1, 5)},
    ),
    "a closed gate": Fault({"reconstruction_does_nothing": ALL}, {"gate": 0.0}),
    "a layer that reconstructs worse": Fault(
        {"layer_reconstructs_worse": {5}}, {"qualities": {1: 0.8, 3: 0.7, 5: 0.2}}
    ),
    "two hooks that capture": Fault({"hooks_capture_twice": {None}}, then=two_hooks),
    "a counter that stands still": Fault({"model_counter_dead": {None}}, {"dead": True}),
    "a counter that counts twice": Fault({"model_counter_differs": {None}}, {"double": True}),
    "an optimisation that does harm": Fault(
        {"optimisation_made_it_worse": {None}},
        steps=120,
        each=tighten,
        follows=("memory_frozen", "buffer_refuses"),
    ),
}


def watched(model: nn.Module, clock: ManualClock | None = None) -> CMRPerformanceMonitor:
    settings = {"log_every_n_steps": 5, "on_monitor_error": "raise"}
    return CMRPerformanceMonitor(settings, model=model, clock=clock)


def found(monitor: CMRPerformanceMonitor) -> dict[str, set[int | None]]:
    """Layers by the name of the findings."""
    out: dict[str, set[int | None]] = {}
    for finding in monitor.run_diagnostics()["findings"]:
        out.setdefault(finding["name"], set()).add(finding["layer"])
    return out


def diagnosed(fault: Fault) -> tuple[Diagnosed, CMRPerformanceMonitor]:
    torch.manual_seed(0)
    model = Diagnosed(**fault.changes)
    monitor = watched(model)
    train(model, fault.steps, monitor.track_performance, lambda step: fault.each(model, step))
    fault.then(model)
    return model, monitor


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named_right(name: str) -> None:
    fault = FAULTS[name]
    model, monitor = diagnosed(fault)
    said = found(monitor)
    assert model.training  # it is still there to be looked at
    assert {k: v for k, v in said.items() if k not in fault.follows} == fault.finds


@pytest.mark.parametrize("steps", [0, 1, 7, 60, 230])
def test_nothing_is_found_on_a_healthy_model(steps: int) -> None:
    model, monitor = diagnosed(Fault({}, steps=steps))
    assert model.training
    assert found(monitor) == {}
    monitor.detach()
    assert found(monitor) == {}  # the model was let go; what is known of it stays


def test_a_model_without_memory() -> None:
    model = nn.Linear(DIM, 1)
    monitor = watched(model)
    train(model, 30, monitor.track_performance)
    assert found(monitor) == {"no_memory_found": {None}}


def test_a_hook_that_was_registered_too_late() -> None:
    model = Diagnosed()
    model.blocks[2].compile(backend="eager")
    monitor = watched(model)
    model.blocks[2].register_forward_hook(lambda module, args, out: None)
    model.blocks[4].register_forward_hook(lambda module, args, out: None)  # that one runs
    [finding] = monitor.run_diagnostics()["hook_analysis"]["findings"]
    assert finding["name"] == "hook_never_runs" and finding["evidence"]["module"] == "blocks.2"


def test_hooks_that_take_much_of_the_time() -> None:
    clock = ManualClock()
    model = Diagnosed(work=lambda entries: clock.advance(0.1))
    model.blocks[0].register_forward_hook(lambda module, args, out: clock.advance(1.0))
    monitor = watched(model, clock)
    with monitor.measure_hooks():
        model(batches(1)[0])
    analysis = monitor.run_diagnostics()["hook_analysis"]
    assert [f["name"] for f in analysis["findings"]] == ["hooks_slow"]
    # 12 retrievals of 0.1 s beside one hook of 1 s
    assert analysis["findings"][0]["evidence"]["share"] == pytest.approx(1 / 2.2)
    [row] = [hook for hook in analysis["hooks"] if not hook["ours"]]
    assert (row["calls"], row["seconds"]) == (1, pytest.approx(1.0))


def test_a_retrieval_that_slows_down_as_the_memory_grows() -> None:
    clock = ManualClock()
    model = Diagnosed(capacity=10_000, work=lambda entries: clock.advance(1e-4 * entries))
    monitor = watched(model, clock)
    train(model, 90, monitor.track_performance, lambda step: clock.advance(0.001))
    assert found(monitor) == {"retrieval_slows_with_size": ALL}


class Index:
    """What an indexed memory is recognised by; nothing is ever near enough."""

    def __init__(self) -> None:
        self.max_memories, self.ids = 8, [0]
        self.indices = [self]
        self.db = torch.zeros(1, 8, 2, DIM)

    def add(self, states: torch.Tensor) -> None:
        """Keep nothing new."""

    def search(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A mask of what was found."""
        return query, torch.zeros(len(query), dtype=torch.bool)


def test_a_search_that_never_finds_a_slot() -> None:
    model = nn.Module()
    model.memory = Index()
    monitor = watched(model)
    for _ in range(250):
        with monitor.track_performance():
            model.memory.search(torch.zeros(3, DIM))
    assert "retrieval_hits_nothing" in found(monitor)


class Hit(nn.Module):
    """A retriever with a cache that forgets at once; it answered one call, so that it is alive."""

    def __init__(self) -> None:
        super().__init__()
        self.retrieval_stats = {"cache_hits": 0}
        self.calls = 0

    def retrieve_memories(self, query: torch.Tensor) -> list[int]:
        """One memory."""
        self.calls += 1
        self.retrieval_stats["cache_hits"] += self.calls == 1
        return [1]


def test_a_cache_that_answers_nothing() -> None:
    model = Hit()
    monitor = watched(model)
    for _ in range(250):
        with monitor.track_performance():
            model.retrieve_memories(torch.zeros(DIM))
    assert "cache_useless" in found(monitor)


SAID_ELSEWHERE = {
    # of probes, of comparisons and of the monitor: test_diagnostics_example.py
    *("books_do_not_balance", "probe_disagrees", "samples_rejected", "monitor_failing"),
    *("memory_changes_nothing", "memory_hurts", "memory_not_compared"),
    # here, in tests of their own
    *("no_memory_found", "hook_never_runs", "hooks_slow", "retrieval_slows_with_size"),
    *("retrieval_hits_nothing", "cache_useless", "evicted_then_missed"),
}


def test_entries_that_are_evicted_and_stored_again() -> None:
    model = Diagnosed(capacity=40)
    settings = {"log_every_n_steps": 1, "diagnostics": {"look_every": 1}}
    monitor = CMRPerformanceMonitor(settings, model=model)
    few = batches(2)
    train(model, 0, monitor.track_performance)
    with torch.no_grad():
        for step in range(60):  # the same few batches come again and again
            with monitor.track_performance():
                model(few[step % 2] if step % 4 < 2 else few[step % 2] + 1)
    assert found(monitor)["evicted_then_missed"] == ALL


def test_evictions_of_a_healthy_model_are_not_missed() -> None:
    model = Diagnosed()
    settings = {"log_every_n_steps": 1, "diagnostics": {"look_every": 1}}
    monitor = CMRPerformanceMonitor(settings, model=model)
    train(model, 40, monitor.track_performance)
    assert found(monitor) == {}
    missed = monitor.run_diagnostics()["memory_analysis"]["missed"]["3"]
    evicted = monitor.snapshot.value("eviction_count", layer=3)
    assert missed["missed"] == 0
    assert 0 < missed["gone"] <= evicted


def test_every_diagnostic_has_its_fault() -> None:
    shown = {name for fault in FAULTS.values() for name in fault.finds}
    assert shown | SAID_ELSEWHERE == {diagnostic.name for diagnostic in DIAGNOSTICS}
    assert not shown & SAID_ELSEWHERE


def test_the_specifications_snippet() -> None:
    model, monitor = diagnosed(FAULTS["entries that are not finite"])

    # Run comprehensive diagnostics
    diagnostics = monitor.run_diagnostics()

    # Check component health
    component_health = diagnostics["component_health"]
    hook_analysis = diagnostics["hook_analysis"]
    memory_analysis = diagnostics["memory_analysis"]

    assert model.training
    assert memory_analysis["status"] == component_health["status"] == "critical"
    assert component_health["components"]["memory_buffer"]["status"] == "critical"
    assert hook_analysis["status"] == "healthy" and hook_analysis["findings"] == []
    assert memory_analysis["findings"] == diagnostics["findings"]
    assert set(diagnostics["findings"][0]) == {
        *("name", "severity", "component", "layer", "sentence", "evidence", "advice")
    }
    json.dumps(diagnostics, allow_nan=False)


def test_looking_changes_nothing() -> None:
    """The same weights, entries, counters and random numbers to the bit, looked at or not."""
    left = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = Diagnosed()
        monitor = watched(model)

        def each(step: int, looks: bool = looks, monitor: Any = monitor) -> None:
            if looks:
                monitor.run_diagnostics()

        train(model, 30, monitor.track_performance, each)
        held = model.memory_buffer.layer_buffers
        left.append(
            (
                [p.detach().tolist() for p in model.parameters()],
                [(e.hidden_state.tolist(), e.last_access, e.access_count) for e in held[3]],
                model.memory_buffer.stats,
                torch.get_rng_state().tolist(),
                monitor.snapshot.layers("total_retrievals"),
                monitor.snapshot.layers("states_stored"),
            )
        )
    assert left[0] == left[1]


def test_where_entries_came_from_and_went_to() -> None:
    model = Diagnosed()
    train(model, 3, torch.enable_grad)  # before anybody watched
    held = {layer: len(entries) for layer, entries in model.memory_buffer.layer_buffers.items()}
    monitor = watched(model)
    train(model, 20, monitor.track_performance)
    del model.memory_buffer.layer_buffers[3][:5]  # past every method: cleared, as the books have it
    rows = {
        row["layer"]: row for row in monitor.run_diagnostics()["memory_analysis"]["conservation"]
    }
    assert {layer: row["at_start"] for layer, row in rows.items()} == held
    for layer, row in rows.items():
        assert row["gap"] == 0
        assert row["entries"] == len(model.memory_buffer.layer_buffers[layer])
        assert row["entries"] == row["at_start"] + row["stored"] - row["evicted"] - row["cleared"]
    assert [rows[layer]["cleared"] for layer in (1, 3, 5)] == [0, 5, 0]
