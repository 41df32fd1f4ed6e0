"""The parts of the example model do what their counters say."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from examples.cmr_lm.data import topic_texts, unigram_entropy
from examples.cmr_lm.memory import LayeredMemoryBuffer
from examples.cmr_lm.model import CMRConfig, FullCMRModel


def small(**changes: Any) -> FullCMRModel:
    """A model that trains in milliseconds."""
    settings: dict[str, Any] = {
        "dim": 16,
        "blocks": 3,
        "heads": 2,
        "context": 12,
        "dropout": 0.0,
        "memory_layers": [1, 3],
        "capacity": 24,
        "capacity_of": {3: 6},
        "max_total_entries": 28,
        "protect_steps": 1,
        "retrieve": 3,
        "capture": 2,
        "threshold": 0.0,
    }
    torch.manual_seed(0)
    return FullCMRModel(CMRConfig(**{**settings, **changes}))


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (4, 12), generator=torch.Generator().manual_seed(seed))


def train(model: FullCMRModel, steps: int) -> None:
    for step in range(steps):
        model(batch(step), batch(step + 1))["loss"].backward()


def buffer(**changes: Any) -> LayeredMemoryBuffer:
    settings: dict[str, Any] = {
        "layers": [1, 2],
        "dim": 4,
        "max_entries_per_layer": 3,
        "max_total_entries": 5,
        "policy": "lru",
        "protect_steps": 0,
        "cache_steps": 4,
    }
    return LayeredMemoryBuffer(**{**settings, **changes})


def store(memory: LayeredMemoryBuffer, layer: int, relevance: list[float], step: int) -> list[bool]:
    states = torch.eye(4)[: len(relevance)] + step
    return memory.store_states(layer, states, torch.tensor(relevance), step).tolist()


def relevances(memory: LayeredMemoryBuffer, layer: int) -> list[float]:
    return sorted(round(r, 1) for r in memory.layer_buffers[layer].relevance.tolist())


def test_capacities_are_never_passed_and_the_most_relevant_come_first() -> None:
    memory = buffer()
    assert store(memory, 1, [0.1, 0.9, 0.5, 0.7], 0) == [False, True, True, True]
    assert store(memory, 2, [0.1, 0.9, 0.5], 0) == [False, True, True]  # the total limit is 5
    assert memory.total_entries == 5


def test_lru_drops_the_least_recently_read() -> None:
    memory = buffer(max_total_entries=99)
    for step in range(3):
        store(memory, 1, [0.5], step)
    rows = memory.layer_buffers[1]
    rows.read_at[0] = 5
    assert store(memory, 1, [0.1], 7) == [True]
    assert rows.stored_at.tolist() == [0, 7, 2]
    assert rows.evicted == 1


def test_relevance_never_drops_an_entry_for_a_less_relevant_one() -> None:
    memory = buffer(policy="relevance", max_total_entries=99)
    store(memory, 1, [0.2, 0.4, 0.6], 0)
    assert store(memory, 1, [0.1], 9) == [False]
    assert store(memory, 1, [0.3], 9) == [True]
    assert relevances(memory, 1) == [0.3, 0.4, 0.6]


def test_mixed_weighs_relevance_against_idleness() -> None:
    memory = buffer(policy="mixed", max_total_entries=99)
    store(memory, 1, [0.9, 0.5, 0.8], 0)
    memory.layer_buffers[1].read_at[:] = torch.tensor([0, 9, 9])
    # values at step 10: 0.9 - 1, 0.8 - 0.1, 0.5 - 0.1 in the order stored (0.9, 0.8, 0.5)
    store(memory, 1, [0.7], 10)
    assert relevances(memory, 1) == [0.5, 0.7, 0.8]


def test_what_is_being_read_is_not_evicted_and_the_new_state_is_refused() -> None:
    memory = buffer(protect_steps=5, max_total_entries=99)
    store(memory, 1, [0.5, 0.5, 0.5], 0)
    assert store(memory, 1, [0.9], 5) == [False]
    assert store(memory, 1, [0.9], 6) == [True]


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 'fifo'"):
        buffer(policy="fifo")


def test_a_cached_answer_is_a_hit_until_its_entries_are_gone() -> None:
    memory = buffer(max_total_entries=99)
    store(memory, 1, [0.5, 0.5, 0.5], 0)
    query = torch.eye(4)[:1]
    first = memory.retrieve(1, query, 2, 1)
    again = memory.retrieve(1, query, 2, 2)
    assert first is not None and again is not None
    assert (first.hits, again.hits) == (0, 1)
    assert torch.equal(first.states, again.states)
    store(memory, 1, [0.9, 0.9, 0.9], 9)  # every entry is replaced
    replaced = memory.retrieve(1, query, 2, 9)
    assert replaced is not None and replaced.hits == 0


def test_too_few_entries_give_nothing_back() -> None:
    assert buffer().retrieve(1, torch.ones(1, 4), 2, 0) is None


def test_more_capacity_keeps_the_entries_and_less_is_an_error() -> None:
    memory = buffer(max_total_entries=99)
    store(memory, 1, [0.5, 0.6, 0.7], 0)
    memory.set_capacity(1, 10)
    assert memory.layer_buffers[1].capacity == 10
    assert memory.layer_buffers[1].size == 3
    with pytest.raises(ValueError, match="holds 3 entries, capacity 2 is less"):
        memory.set_capacity(1, 2)


def test_counters_conserve_entries() -> None:
    model = small()
    train(model, 12)
    cleared = model.memory_buffer.clear(1)
    train(model, 3)
    assert cleared > 0
    for layer, counters in model._counters().items():
        rows = model.memory_buffer.layer_buffers[layer]
        assert counters.stored - rows.evicted - rows.cleared == rows.size
        assert counters.considered >= counters.attempted >= counters.captured >= counters.stored
    assert model.memory_buffer.total_entries <= 28


class Listener:
    """Notes what a probe is told of its buffer."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def buffer(self, entries: int, capacity: int, nbytes: int, *, cleared: int) -> None:
        self.calls.append((entries, capacity, nbytes, cleared))


def test_a_clear_is_told_to_the_probes() -> None:
    model = small()
    train(model, 5)
    held = dict(model.memory_stats["entries_per_layer"])
    listeners = {number: Listener() for number in held}
    for number, listener in listeners.items():
        layer = model.memory_layer(number)
        assert layer is not None
        layer.probe = listener  # type: ignore[assignment]
    assert model.clear_memory() == sum(held.values()) > 0
    assert model.memory_buffer.total_entries == 0
    assert listeners[1].calls == [(0, 24, 0, held[1])]
    assert listeners[3].calls == [(0, 6, 0, held[3])]


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_it_trains_under_bf16_autocast(checkpoint_blocks: bool) -> None:
    model = small(checkpoint_blocks=checkpoint_blocks)
    for step in range(6):
        # a context for each step, as in a Trainer: older torch keeps a cast made without grad
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch(step), batch(step + 1))["loss"]
        loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.memory_buffer.total_entries == 28


def test_performance_stats_have_the_specifications_keys() -> None:
    model = small()
    train(model, 5)
    outputs = model(batch(), return_memory_info=True)
    stats = outputs["performance_stats"]
    assert stats["total_captures"] == sum(stats["states_captured_per_layer"].values()) > 0
    assert stats["total_reconstructions"] == sum(stats["reconstructions_per_layer"].values()) > 0
    assert set(stats["states_stored_per_layer"]) == {1, 3}
    assert outputs["memory_stats"]["total_entries"] == model.memory_buffer.total_entries
    assert "memory_info" in outputs
    # durations are the model's own: no monitor listens here
    assert len(stats["capture_times"]) == 6 * 2  # passes × layers
    assert stats["avg_capture_time"] == pytest.approx(sum(stats["capture_times"]) / 12)
    memory = outputs["memory_stats"]
    stored = sum(stats["states_stored_per_layer"].values())
    assert memory["eviction_rate"] == memory["eviction_count"] / stored
    assert memory["avg_retrieval_time"] > 0
    assert 0 <= memory["retrieval_quality"] <= 1


def test_every_parameter_learns_the_relevance_scorer_too() -> None:
    model = small()
    train(model, 4)
    model.zero_grad()
    model(batch(9), batch(10))["loss"].backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_later_bytes_do_not_change_earlier_predictions() -> None:
    model = small()
    train(model, 4)
    model.eval()
    ids = batch(3)
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    before, after = model(ids)["logits"], model(changed)["logits"]
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8:], after[:, 8:])


def test_evaluation_reads_but_captures_nothing() -> None:
    model = small()
    train(model, 4)
    before = {i: (c.stored, c.reconstructions) for i, c in model._counters().items()}
    model.eval()
    model(batch())
    reads = model.memory_buffer.layer_buffers[1].read_at.clone()
    model(batch(1))
    assert torch.equal(model.memory_buffer.layer_buffers[1].read_at, reads)
    for layer, counters in model._counters().items():
        assert counters.stored == before[layer][0]
        assert counters.reconstructions == before[layer][1] + 2


def test_checkpointed_blocks_count_once_and_give_the_same_gradients() -> None:
    plain, recomputed = small(), small(checkpoint_blocks=True)
    train(plain, 5)
    train(recomputed, 5)
    counted = plain.performance_stats
    again = recomputed.performance_stats
    assert again["states_stored_per_layer"] == counted["states_stored_per_layer"]
    assert again["reconstructions_per_layer"] == counted["reconstructions_per_layer"]
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_a_state_dict_carries_the_memory() -> None:
    model, other = small(), small()
    train(model, 5)
    other.load_state_dict(model.state_dict())
    assert other.memory_stats["entries_per_layer"] == model.memory_stats["entries_per_layer"]
    assert torch.equal(other.eval()(batch())["logits"], model.eval()(batch())["logits"])


def test_copies_are_independent() -> None:
    model = small()
    train(model, 1)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    held = model.memory_buffer.total_entries
    train(model, 1)
    assert [c.memory_buffer.total_entries for c in copies] == [held, held]
    assert model.memory_buffer.total_entries > held


def test_without_data_a_ratio_is_nan() -> None:
    assert math.isnan(small().performance_stats["avg_capture_time"])
    assert math.isnan(small().memory_stats["cache_hit_rate"])


def test_without_memory_there_is_none_and_the_rest_starts_the_same() -> None:
    model = small(memory_enabled=False)
    with_memory = small().state_dict()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, with_memory[name]), name
    assert model.memory_stats == {}
    assert model(batch(), batch(1))["loss"].isfinite()


def test_the_text_is_split_by_topic_and_its_entropy_is_that_of_english() -> None:
    train_text, valid_text = topic_texts()
    assert len(train_text) > 8 * len(valid_text) > 300_000
    assert unigram_entropy(b"ab" * 5000, b"ab") == pytest.approx(0.72, abs=0.01)
    assert 2.5 < unigram_entropy(train_text, valid_text) < 4.0
