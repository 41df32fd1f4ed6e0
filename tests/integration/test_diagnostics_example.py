"""Faults put into the example model, which tells of itself by probes, are found and named right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from examples.cmr_lm.model import CMRConfig, FullCMRModel

ROWS, LENGTH = 8, 16
HEALTHY: dict[str, Any] = {
    "dim": 16,
    "blocks": 3,
    "heads": 2,
    "context": LENGTH,
    "dropout": 0.0,
    "memory_layers": [1, 3],
    "capacity": 160,
    "capacity_of": {},
    "max_total_entries": 640,
    "protect_steps": 1,
    "retrieve": 4,
    "capture": 4,
}
Do = Callable[[FullCMRModel], None]


@dataclass
class Fault:
    """A fault, what is to be said of it, and what may follow from it."""

    finds: dict[str, set[int | None]]
    changes: dict[str, Any] = field(default_factory=dict)
    first: Do = lambda model: None
    then: Do = lambda model: None
    each: Callable[[FullCMRModel, int], None] = lambda model, step: None
    steps: int = 40
    follows: tuple[str, ...] = ()


def rows(name: str, value: float) -> Do:
    """Set a column of the entries of layer 3."""

    def change(model: FullCMRModel) -> None:
        getattr(model.memory_buffer.layer_buffers[3], name)[:] = value

    return change


def forget_the_cache(model: FullCMRModel) -> None:
    model.memory_buffer.cache.lifetime = -1


def read_nothing_in_layer_3(model: FullCMRModel) -> None:
    layer = model.memory_layer(3)
    assert layer is not None
    layer.k = 10_000


def drop_untold(model: FullCMRModel) -> None:
    """Past the layer, whose `clear` would have told of it."""
    model.memory_buffer.clear(3)


def capture_less(model: FullCMRModel, step: int) -> None:
    if step == 9:
        layer = model.memory_layer(3)
        assert layer is not None
        layer.threshold = 2.0


def count_twice(model: FullCMRModel, step: int) -> None:
    layer = model.memory_layer(1)
    assert layer is not None
    layer.counters.stored += 1


def count_nothing(model: FullCMRModel, step: int) -> None:
    layer = model.memory_layer(1)
    assert layer is not None
    layer.counters.reconstructions = 0


BOTH = {1, 3}
FAULTS = {
    "a layer that does not exist": Fault(
        {"target_layer_missing": {9}}, {"memory_layers": [1, 3, 9]}
    ),
    "a layer that the forward never comes to": Fault(
        {"layer_never_runs": {0}}, {"memory_layers": [0, 1, 3]}
    ),
    "interventions that find nothing": Fault(
        {"reconstructions_use_nothing": {None}}, {"retrieve": 1000}
    ),
    "a threshold that takes nothing": Fault({"threshold_takes_nothing": BOTH}, {"threshold": 1.1}),
    "a threshold that takes all": Fault(
        {"threshold_takes_everything": BOTH},
        {"threshold": 0.0, "capture": LENGTH, "capacity": 1000, "max_total_entries": 4000},
    ),
    "a capacity under one sequence": Fault(
        {"capacity_under_one_sequence": {3}},
        {"capacity_of": {3: 4}},
        follows=("buffer_refuses", "entries_evicted_young"),
    ),
    "a layer that refuses": Fault(
        {"buffer_refuses": {3}},
        {"capacity": 400, "capacity_of": {3: 40}, "max_total_entries": 900, "protect_steps": 8},
    ),
    "a capacity that is never reached": Fault(
        {"capacity_never_reached": BOTH},
        {"capacity": 500_000, "max_total_entries": 1_000_000},
        steps=210,
    ),
    "entries that are gone at once": Fault(
        {"entries_evicted_young": BOTH}, {"capacity": 40, "protect_steps": 0}
    ),
    "entries that are not finite": Fault(
        {"entries_nonfinite": {3}}, then=rows("states", float("nan"))
    ),
    "entries that are zero": Fault({"entries_empty": {3}}, then=rows("states", 0.0)),
    "entries that are all the same": Fault({"duplicate_entries": {3}}, then=rows("states", 1.0)),
    "a relevance that is always the same": Fault(
        {"relevance_flat": {3}}, then=rows("relevance", 0.5)
    ),
    "a layer that stopped capturing": Fault({"memory_frozen": {3}}, each=capture_less),
    "a cache that forgets at once": Fault({"cache_useless": {None}}, first=forget_the_cache),
    "a layer that nobody reads": Fault(
        {"dead_layer": {3}, "layer_not_worth_its_memory": {3}},
        first=read_nothing_in_layer_3,
        steps=60,
        follows=("entries_never_read",),
    ),
    "a counter that counts too much": Fault({"model_counter_differs": {1}}, each=count_twice),
    "a counter that stands still": Fault({"model_counter_dead": {1}}, each=count_nothing),
    "entries that went and nobody said so": Fault(
        {"books_do_not_balance": {3}, "probe_disagrees": {3}},
        then=drop_untold,
        follows=("model_counter_differs",),
    ),
}


def text_batches(count: int) -> list[Tensor]:
    """Bytes of a text, so that there is something to learn."""
    text = torch.tensor(list((__doc__ or "").encode() * 9))
    make = torch.Generator().manual_seed(1)
    starts = torch.randint(0, len(text) - LENGTH - 1, (count, ROWS), generator=make)
    return [torch.stack([text[at : at + LENGTH + 1] for at in row]) for row in starts.tolist()]


def trained(fault: Fault) -> tuple[FullCMRModel, CMRPerformanceMonitor]:
    torch.manual_seed(0)
    model = FullCMRModel(CMRConfig(**{**HEALTHY, **fault.changes}))
    fault.first(model)
    settings = {"log_every_n_steps": 5, "on_monitor_error": "raise"}
    monitor = CMRPerformanceMonitor(settings, model=model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, batch in enumerate(text_batches(fault.steps)):
        with monitor.track_performance():
            loss = model(batch[:, :-1], batch[:, 1:])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fault.each(model, step)
    fault.then(model)
    return model, monitor


def found(monitor: CMRPerformanceMonitor) -> dict[str, set[int | None]]:
    out: dict[str, set[int | None]] = {}
    for finding in monitor.run_diagnostics()["findings"]:
        out.setdefault(finding["name"], set()).add(finding["layer"])
    return out


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named_right(name: str) -> None:
    fault = FAULTS[name]
    model, monitor = trained(fault)
    said = found(monitor)
    assert model.training  # it is still there to be looked at
    assert {k: v for k, v in said.items() if k not in fault.follows} == fault.finds


@pytest.mark.parametrize("steps", [0, 3, 40, 210])
def test_nothing_is_found_on_a_healthy_model(steps: int) -> None:
    model, monitor = trained(Fault({}, steps=steps))
    assert found(monitor) == {}
    del model  # what cannot be looked at any more is no finding
    assert "the model is gone" in monitor.run_diagnostics()["not_available"][0]


def test_numbers_that_cannot_be() -> None:
    model, monitor = trained(Fault({}))
    model.probe.capture(-3, 2, 1)
    assert found(monitor) == {"samples_rejected": {None}}


def test_a_part_of_the_monitor_that_fails() -> None:
    model = FullCMRModel(CMRConfig(**HEALTHY))
    monitor = CMRPerformanceMonitor(model=model)
    with monitor.guard("a part"):
        raise OSError("no space left")
    assert found(monitor) == {"monitor_failing": {None}}


# -- with and without memory -----------------------------------------------------------------------


def loss_of(batch: Tensor) -> Callable[[nn.Module], float]:
    return lambda model: float(model(batch[:, :-1], batch[:, 1:])["loss"])


def compared(model: FullCMRModel, monitor: CMRPerformanceMonitor, count: int = 10) -> None:
    for batch in text_batches(count):
        monitor.compare_memory(model, loss_of(batch))


def test_both_losses_are_the_models_own() -> None:
    model, monitor = trained(Fault({}))
    batch = text_batches(1)[0]
    both = monitor.compare_memory(model, loss_of(batch))
    model.eval()
    with torch.no_grad():
        one = loss_of(batch)(model)
        model.clear_memory()
        other = loss_of(batch)(model)
    assert both == (one, other)
    assert one != other
    analysis = monitor.run_diagnostics()["reconstruction_analysis"]["memory_helps"]
    assert analysis["batches"] == 1
    assert analysis["helps_by"] == pytest.approx(other - one)
    monitor.flush()
    assert monitor.snapshot.value("memory_gain") == pytest.approx(other - one)
    assert monitor.snapshot.value("loss_with_memory") == pytest.approx(one)


def test_nothing_of_the_model_changes_by_comparing() -> None:
    model, monitor = trained(Fault({}))
    monitor.flush()

    def state() -> Any:
        store = model.memory_buffer.layer_buffers[3]
        return (
            [p.detach().tolist() for p in model.parameters()],
            [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            [getattr(store, name).tolist() for name in ("states", "stored_at", "read_at")],
            [vars(layer.counters) for layer in model.memory_layers.values()],
            [module.training for module in model.modules()],
            torch.get_rng_state().tolist(),
            monitor.get_stats(),
            {**monitor.run_diagnostics()["memory_analysis"], "missed": None},  # it counts its looks
        )

    before = state()
    compared(model, monitor)
    assert state() == before


def test_a_memory_that_does_not_reach_the_loss() -> None:
    def close(model: FullCMRModel) -> None:
        for layer in model.memory_layers.values():
            nn.init.zeros_(layer.out.weight)
            nn.init.zeros_(layer.out.bias)

    model, monitor = trained(Fault({}, then=close))
    compared(model, monitor)
    assert found(monitor) == {"memory_changes_nothing": {None}}


def test_a_memory_that_does_harm() -> None:
    def poison(model: FullCMRModel) -> None:
        for layer in model.memory_layers.values():
            nn.init.constant_(layer.gate.bias, 9.0)
            nn.init.normal_(layer.out.weight, std=3.0)

    model, monitor = trained(Fault({}, then=poison))
    compared(model, monitor)
    assert found(monitor) == {"memory_hurts": {None}}


def test_a_healthy_model_that_is_compared() -> None:
    model, monitor = trained(Fault({}, steps=150))
    compared(model, monitor)
    assert not {"memory_changes_nothing", "memory_not_compared"} & set(found(monitor))


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model, monitor = trained(Fault({}))

    def save(module: nn.Module, args: Any, out: Any) -> None:
        model.step += 0

    model.blocks[0].register_forward_hook(save)  # a copy's hook would reach the model
    assert monitor.compare_memory(model, loss_of(text_batches(1)[0])) is None
    [finding] = monitor.run_diagnostics()["findings"]
    assert finding["name"] == "memory_not_compared"
    assert "refers to the model itself" in finding["sentence"]


def test_an_empty_memory_is_not_compared() -> None:
    model, monitor = trained(Fault({}, steps=0))
    assert monitor.compare_memory(model, loss_of(text_batches(1)[0])) is None
    assert found(monitor) == {}
