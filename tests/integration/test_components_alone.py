"""A component that is watched alone: its numbers are those it has beside all others."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import nn

from cmr_monitor_callbacks import CMRPerformanceMonitor
from cmr_monitor_callbacks.catalogue import COMPONENTS, METRICS
from cmr_monitor_callbacks.snapshot import Snapshot
from tests.memory_models.buffers import CountingBuffer, Entry, ListBuffer, SilentBuffer
from tests.memory_models.small import DIM, LAYERS, SmallNet, plain_steps

ELSEWHERE = {
    "error_rate",  # of all calls, those of other components too
    # outside of a Trainer the model's hook sees what enters
    *("throughput", "tokens_per_second"),
}
EACH: dict[str, Any] = {"log_every_n_steps": 1, "on_monitor_error": "raise"}


class Silent(SilentBuffer):
    """Drops the oldest by itself; says whether it took a state."""

    def store_state(self, *args: Any, **kwargs: Any) -> bool:
        return super().store_state(*args, **kwargs) is not False


class Net(SmallNet):
    """Counts for its optimizer, too."""

    def __init__(self, buffer: Any) -> None:
        super().__init__(buffer)
        self.optimization_stats = {"threshold_adjustments": 0}

    def forward(self, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        self.optimization_stats["threshold_adjustments"] += 1
        return super().forward(x, keys)


def run(components: list[str], make: Any, probes: Any = None, recompute: str = "") -> Snapshot:
    """Some steps, in which entries are also loaded, cleared and dropped from outside."""
    torch.manual_seed(0)
    net = Net(make(5, 8, LAYERS))
    net.recompute = recompute
    config = {**EACH, "components": components}
    monitor = CMRPerformanceMonitor(config, model=net, probes=probes)
    for number, step in enumerate(plain_steps(net, 8)):
        with monitor.track_performance():
            step()
            if number == 3:
                net.memory_buffer.clear_layer(LAYERS[0])
            if number == 4 and isinstance(net.memory_buffer, ListBuffer):
                net.memory_buffer.load_entries([Entry(torch.ones(DIM), LAYERS[0], 99)])
            if number == 6:
                net.memory_buffer.layer_buffers[LAYERS[1]].clear()
    monitor.detach()
    return monitor.snapshot


@lru_cache
def run_with_all(make: Any, wrap: bool, recompute: str) -> Snapshot:
    """The same with every component."""
    return run(["*"], make, {"wrap": wrap}, recompute)


def known(snapshot: Snapshot, component: str) -> dict[str, Any]:
    """What a component says; of what depends on the clock, only whether there is any data."""
    found = {}
    for info in METRICS:
        if info.component != component or info.name in ELSEWHERE:
            continue
        values = [snapshot.value(info.name, layer=layer) for layer in (None, *LAYERS)]
        by_clock = component == "timing" or info.unit == "s"
        found[info.name] = [x == x if by_clock or x != x else x for x in values]
    return found


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    ("make", "probes", "recompute"),
    [
        (ListBuffer, None, ""),
        (ListBuffer, None, "reentrant"),
        (Silent, None, ""),
        (CountingBuffer, {"wrap": False}, ""),
    ],
)
def test_a_components_numbers_are_its_own(
    component: str, make: Any, probes: Any, recompute: str
) -> None:
    alone = known(run([component], make, probes, recompute), component)
    assert alone == known(run_with_all(make, probes is None, recompute), component)


def test_the_books_of_a_buffer_that_is_watched_alone() -> None:
    snapshot = run(["buffer"], ListBuffer)
    assert all(snapshot.value(name) > 0 for name in ("eviction_count", "states_cleared"))
    assert snapshot.value("states_loaded") == 1
    assert snapshot.value("capture_calls") != snapshot.value("capture_calls"), "no data"
    alone = run(["capture"], ListBuffer)
    assert alone.value("states_overwritten") != alone.value("states_overwritten")


STORES = {"store_state", "load_entries"}
MOVES = {"_insert_entry", "_remove_entry", "clear_layer", "clear_all"}
RETRIEVES = {"retrieve_by_layer", "retrieve_similar"}
TOUCHED: dict[str, tuple[dict[str, set[str]], dict[str, int]]] = {
    # methods that are replaced, by object; hooks, by module: one of the model's forward before and
    # after, one before the reconstructor for memories that are only passed to it
    "capture": (
        {"buffer": STORES, "net": {"_capture_states"}},
        {"": 2, "reconstructor": 1, "relevance_scorer": 1},
    ),
    "reconstruction": ({}, {"": 2, "reconstructor": 3}),
    "buffer": ({"buffer": STORES | MOVES}, {"reconstructor": 1}),
    "retrieval": (
        {"buffer": RETRIEVES, "retriever": {"retrieve_memories"}},
        {"": 2, "reconstructor": 1},
    ),
    "errors": ({}, {"": 2}),
    "model": ({}, {"": 2}),
    "timing": ({}, {}),
    "optimization": ({}, {}),
}


@pytest.mark.parametrize("component", COMPONENTS)
def test_nothing_is_touched_that_serves_others_alone(component: str) -> None:
    net = SmallNet(ListBuffer(5, 8, LAYERS))
    monitor = CMRPerformanceMonitor({**EACH, "components": [component]}, model=net)
    objects: dict[str, Any] = {"buffer": net.memory_buffer, "retriever": net.retriever, "net": net}
    methods = {
        name: {key for key, value in vars(one).items() if type(value).__name__ == "Wrapped"}
        for name, one in objects.items()
    }
    hooks = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks)
        for name, module in net.named_modules()
    }
    wrapped, hooked = TOUCHED[component]
    assert {name: found for name, found in methods.items() if found} == wrapped
    assert {name: count for name, count in hooks.items() if count} == hooked
    monitor.detach()


class Knn(nn.Module):
    """A memory with an index; what is done with it does not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Indexed()


class Indexed:
    """Offers what an indexed memory does."""

    def __init__(self) -> None:
        self.max_memories, self.knns = 4, [Index()]
        self.db = torch.zeros(1, 4, 2)

    def add(self, states: torch.Tensor) -> None:
        self.knns[0].ids.extend(range(states.shape[1]))

    def search(self, queries: torch.Tensor) -> list[int]:
        return self.knns[0].ids

    def clear(self) -> None:
        self.knns[0].ids.clear()


class Index:
    """Numbers of entries."""

    def __init__(self) -> None:
        self.ids: list[int] = []


@pytest.mark.parametrize(
    ("component", "wrapped"),
    [
        ("capture", {"add"}),
        ("buffer", {"add", "clear"}),
        ("retrieval", {"search"}),
        ("timing", set()),
    ],
)
def test_an_indexed_memory_is_touched_where_it_serves(component: str, wrapped: set[str]) -> None:
    model = Knn()
    monitor = CMRPerformanceMonitor({**EACH, "components": [component]}, model=model)
    found = {key for key, value in vars(model.memory).items() if type(value).__name__ == "Wrapped"}
    assert found == wrapped
    with monitor.track_performance():
        model.memory.add(torch.ones(1, 3, 2))
    states = {"capture": "states_stored", "buffer": "total_entries"}.get(component)
    assert states is None or monitor.snapshot.value(states) == 3
    monitor.detach()
