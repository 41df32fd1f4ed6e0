"""Entries are read whatever they lie in, and nothing of the buffer changes by it."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cmr_monitor_callbacks.probes.declared import declared, own_counts, switch_off
from cmr_monitor_callbacks.probes.entries import forget_entries, read_entries
from cmr_monitor_callbacks.probes.sparing import CannotCompare, random_state_kept, spare_copy
from tests.memory_models.buffers import KINDS
from tests.models import MemoryModule

DIM = 4


def holding(kind: str) -> tuple[nn.Module, Any]:
    model = nn.Module()
    model.memory = KINDS[kind].make(5, 8, (2, 4))
    for key in range(3):
        state = torch.full((DIM,), float(key))
        if KINDS[kind].layered:
            model.memory.store_state(state, 2, key=key)
        else:
            model.memory.store_state(state, key=key)
    return model, model.memory


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_of_every_kind_of_buffer(kind: str) -> None:
    model, buffer = holding(kind)
    held = KINDS[kind].held(buffer, 2)
    before = [(id(e), e.hidden_state.tolist(), e.age) for e in held]
    found, unknown = read_entries(model)
    [one] = [one for one in found if one.count]
    assert one.layer == (2 if KINDS[kind].layered else "memory")
    assert one.states is not None
    assert one.states.tolist() == [[float(key)] * DIM for key in range(3)]
    assert unknown == []
    assert before == [(id(e), e.hidden_state.tolist(), e.age) for e in held]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_emptied_and_the_model_is_not(kind: str) -> None:
    model, _ = holding(kind)
    spare = copy.deepcopy(model)
    assert forget_entries(spare) == 3
    assert sum(one.count for one in read_entries(spare)[0]) == 0
    assert sum(one.count for one in read_entries(model)[0]) == 3


def test_a_sample_is_spread_over_all_entries() -> None:
    model = nn.Module()
    model.memory = KINDS["lists"].make(1000, 1000, (2,))
    for key in range(1000):
        model.memory.store_state(torch.full((1,), float(key)), 2, key=key)
    [one], _ = read_entries(model, sample=11)
    assert one.count == 1000 and one.sampled == 11 and one.states is not None
    assert one.states[:, 0].tolist() == [round(i * 99.9) for i in range(11)]


Slot = namedtuple("Slot", ["state", "relevance_score", "created_at", "last_used", "read_count"])


@pytest.mark.parametrize("form", ["mapping", "named tuple"])
def test_what_entries_say_of_themselves(form: str) -> None:
    model = nn.Module()
    model.memory = KINDS["single"].make(9, 9)
    slots = [Slot(torch.ones(DIM), 0.5 + i, i, torch.tensor(10 + i), 7 * i) for i in range(2)]
    model.memory.entries = [s._asdict() for s in slots] if form == "mapping" else slots
    [one], _ = read_entries(model)
    for name, told in (
        ("relevance", [0.5, 1.5]),
        ("stored_at", [0.0, 1.0]),
        ("read_at", [10.0, 11.0]),
        ("accesses", [0.0, 7.0]),
    ):
        values = getattr(one, name)
        assert values is not None and values.tolist() == told
    assert one.never_read is not None and one.never_read.tolist() == [True, False]


def test_a_table_of_tensors_says_how_many_rows_are_in_use() -> None:
    model = MemoryModule()
    model(torch.randn(30, 8), torch.arange(30))
    found, _ = read_entries(model)
    assert {one.layer: one.count for one in found} == {
        block.store.layer: int(block.store.entries) for block in model.blocks
    }


def test_what_a_model_declares_and_counts() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.target_layers, self.memory_enabled = [1, 7], True
            self.blocks = nn.ModuleList([nn.Identity()] * 4)

        @property
        def performance_stats(self) -> dict[str, Any]:
            return {"states_stored_per_layer": {1: 45}, "total_captures": 3}

    net = Net()
    assert declared(net).targets == (("target_layers", (1, 7)),)
    assert declared(net).blocks == 4
    [one] = own_counts(net)  # nobody knows what ``total_captures`` counts
    assert (one.metric, one.layer, one.value) == ("states_stored", 1, 45)
    assert switch_off(net) == ["memory_enabled"] and not net.memory_enabled


def test_a_spare_copy_shares_parameters_alone() -> None:
    model, buffer = holding("lists")
    model.linear = nn.Linear(2, 2)
    spare = spare_copy(model)
    assert spare.linear.weight is model.linear.weight
    assert spare.memory is not buffer
    spare.memory.clear_all()
    assert sum(one.count for one in read_entries(model)[0]) == 3


def test_what_reaches_back_to_the_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    inner = model[0]
    model[0].ask = lambda: inner.weight  # type: ignore[assignment]
    with pytest.raises(CannotCompare, match="a function that 0 holds refers to the model itself"):
        spare_copy(model)
    with pytest.raises(CannotCompare, match="OptimizedModule"):
        spare_copy(torch.compile(nn.Linear(2, 2), backend="eager"))  # type: ignore[arg-type]


def test_random_numbers_are_drawn_again() -> None:
    with random_state_kept():
        first = torch.rand(3).tolist(), np.random.rand()
    assert (torch.rand(3).tolist(), np.random.rand()) == first
