"""A transformer with a layered memory, as a research project that knows of no monitor writes one.

It keeps statistics of its own, of which some are dead, some mean two things, and one is wrong:
`tests.memory_models.cmr_tap` counts what really happens.
"""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

VOCAB, HIDDEN, ROWS, LENGTH = 17, 8, 2, 5
TARGETS = (1, 2, 4)
"""Layers whose states are captured."""
INTERVENTIONS = (2, 4)
"""Layers after which memories are woven in."""


def work(quanta: int) -> None:
    """Stands for what takes a real model time; a test puts a clock in its place."""


@dataclass(eq=False)
class MemoryEntry:
    """One captured state."""

    hidden_state: Tensor
    key: Tensor
    layer_idx: int
    sequence_id: int
    position_idx: int
    relevance_score: float
    last_access: int
    access_count: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


class LayeredMemoryBuffer:
    """Entries of each layer, at most so many of one layer and so many in all."""

    def __init__(
        self,
        max_entries_per_layer: int = 100,
        max_total_entries: int = 500,
        eviction_strategy: str = "relevance",
    ) -> None:
        self.max_entries_per_layer = max_entries_per_layer
        self.max_total_entries = max_total_entries
        self.eviction_strategy = eviction_strategy
        self.layer_buffers: dict[int, list[MemoryEntry]] = defaultdict(list)
        self.entry_count = 0
        self.ticks = 0
        self.stats = {
            "total_insertions": 0,
            "total_retrievals": 0,  # entries, not operations
            "total_evictions": 0,  # clear_sequence() too
            "cache_hits": 0,  # nothing counts it up
            "cache_misses": 0,
        }

    def store_state(
        self,
        hidden_state: Tensor,
        layer_idx: int,
        position_idx: int,
        relevance_score: float,
        sequence_id: int = 0,
    ) -> bool:
        """Keep a copy of a state; False if it is refused."""
        work(1)
        if relevance_score < 0.45:
            return False
        if not self._make_room(layer_idx, relevance_score):
            return False
        state = hidden_state.detach().clone()
        self._insert_entry(
            MemoryEntry(
                state,
                state[: HIDDEN // 2].half(),
                layer_idx,
                sequence_id,
                position_idx,
                relevance_score,
                self.ticks,
            )
        )
        self.stats["total_insertions"] += 1
        return True

    def _make_room(self, layer_idx: int, relevance_score: float) -> bool:
        while True:
            if len(self.layer_buffers[layer_idx]) >= self.max_entries_per_layer:
                candidates = self.layer_buffers[layer_idx]
            elif self.entry_count >= self.max_total_entries:
                candidates = self.get_all_entries()  # may be of another layer
            else:
                return True
            if self.eviction_strategy == "lru":
                worst = min(candidates, key=lambda entry: entry.last_access)
            else:
                worst = min(candidates, key=lambda entry: entry.relevance_score)
                if worst.relevance_score >= relevance_score:
                    return False
            work(2)
            self._remove_entry(worst)

    def _insert_entry(self, entry: MemoryEntry) -> None:
        self.ticks += 1
        entry.last_access = self.ticks
        self.layer_buffers[entry.layer_idx].append(entry)
        self.entry_count += 1

    def _remove_entry(self, entry: MemoryEntry) -> None:
        self.layer_buffers[entry.layer_idx].remove(entry)
        self.entry_count -= 1
        self.stats["total_evictions"] += 1

    def _touch(self, entries: list[MemoryEntry]) -> list[MemoryEntry]:
        for entry in entries:
            self.ticks += 1
            entry.last_access = self.ticks
            entry.access_count += 1
        self.stats["total_retrievals"] += len(entries)
        return entries

    def retrieve_by_layer(
        self, layer_idx: int, k: int | None = None, min_relevance: float = 0.0
    ) -> list[MemoryEntry]:
        """The most relevant entries of a layer."""
        work(2)
        if layer_idx not in self.layer_buffers:
            return []
        found = [e for e in self.layer_buffers[layer_idx] if e.relevance_score >= min_relevance]
        found.sort(key=lambda entry: entry.relevance_score, reverse=True)
        return self._touch(found[:k])

    def retrieve_top_k_relevant(
        self, k: int, layer_indices: list[int] | None = None
    ) -> list[MemoryEntry]:
        """The most relevant entries of all layers."""
        work(5)
        found = [
            entry
            for layer, entries in self.layer_buffers.items()
            if layer_indices is None or layer in layer_indices
            for entry in entries
        ]
        found.sort(key=lambda entry: entry.relevance_score, reverse=True)
        return self._touch(found[:k])

    def cleanup_least_relevant(self, target_entries: int) -> None:
        """Drop the least relevant entries until so many are left."""
        worst = sorted(self.get_all_entries(), key=lambda entry: entry.relevance_score)
        for entry in worst[: max(0, self.entry_count - target_entries)]:
            self._remove_entry(entry)

    def clear_sequence(self, sequence_id: int) -> None:
        for entry in self.get_all_entries():
            if entry.sequence_id == sequence_id:
                self._remove_entry(entry)

    def clear_layer(self, layer_idx: int) -> None:
        self.entry_count -= len(self.layer_buffers.pop(layer_idx, []))

    def clear_all(self) -> None:
        self.layer_buffers.clear()
        self.entry_count = 0
        for key in self.stats:
            self.stats[key] = 0

    def get_all_entries(self) -> list[MemoryEntry]:
        return [entry for entries in self.layer_buffers.values() for entry in entries]

    def get_buffer_stats(self) -> dict[str, Any]:
        return {
            "total_entries": self.entry_count,
            "memory_utilization": self.entry_count / self.max_total_entries,
            **self.stats,
        }


class RelevanceScorer(nn.Module):
    """A score in 0..1 for each position."""

    def __init__(self, hidden_size: int, relevance_threshold: float) -> None:
        super().__init__()
        self.relevance_threshold = relevance_threshold
        self.scorer = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Shape ``(rows, positions, hidden)`` in, ``(rows, positions)`` out."""
        work(1)
        return torch.sigmoid(self.scorer(hidden_states)).squeeze(-1)


@dataclass
class RetrievalContext:
    """What memories are wanted for."""

    query_state: Tensor
    current_layer_idx: int
    topic: int
    min_relevance: float


class AdvancedMemoryRetriever(nn.Module):
    """Asks the buffer, and remembers the last few answers."""

    def __init__(self, memory_buffer: LayeredMemoryBuffer, cache_size: int = 3) -> None:
        super().__init__()
        self.memory_buffer = memory_buffer
        self.cache_size = cache_size
        self.cache: OrderedDict[Any, list[MemoryEntry]] = OrderedDict()
        self.retrieval_stats = {
            "total_retrievals": 0,
            "cache_hits": 0,
            "avg_retrieval_time": 0.0,
            "retrieval_quality": 0.0,  # nothing sets it
        }

    def retrieve_memories(self, context: RetrievalContext) -> list[MemoryEntry]:
        work(1)
        layer = context.current_layer_idx
        self.retrieval_stats["total_retrievals"] += 1
        held = len(self.memory_buffer.layer_buffers.get(layer, []))
        key = (layer, context.topic, held)
        if key in self.cache:
            self.retrieval_stats["cache_hits"] += 1
            self.cache.move_to_end(key)
            return self.cache[key]
        found = self.memory_buffer.retrieve_by_layer(
            layer, k=5, min_relevance=context.min_relevance
        )
        self.cache[key] = found
        if len(self.cache) > self.cache_size:
            self.cache.popitem(last=False)
        return found


def can_rate(used: int, layer_idx: int) -> bool:
    """Whether a reconstruction says how good it was."""
    return used > 1 or (used == 0 and layer_idx == INTERVENTIONS[0])


class LayeredStateReconstructor(nn.Module):
    """Weaves memories into hidden states."""

    def __init__(self, hidden_size: int, max_memory_tokens: int = 4) -> None:
        super().__init__()
        self.max_memory_tokens = max_memory_tokens
        self.mix = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        current_hidden_states: Tensor,
        retrieved_memories: list[MemoryEntry],
        layer_idx: int,
    ) -> tuple[Tensor, dict[str, Any]]:
        used = min(len(retrieved_memories), self.max_memory_tokens)
        work(3 + used)
        pooled = current_hidden_states.new_zeros(current_hidden_states.shape[-1])
        for entry in retrieved_memories[:used]:
            pooled = pooled + entry.hidden_state / used
        info: dict[str, Any] = {"num_memories_used": used, "reconstruction_method": "mean"}
        if can_rate(used, layer_idx):
            info["reconstruction_quality"] = (used + layer_idx) / 8
        return current_hidden_states + 0.1 * self.mix(pooled), info


class PerformanceMonitor:
    """The project's own: lists that nothing reads."""

    def __init__(self) -> None:
        self.captures: list[tuple[int, int, float]] = []
        self.reconstructions: list[tuple[int, int, float]] = []

    def record_capture(self, layer_idx: int, states_stored: int, capture_time: float) -> None:
        self.captures.append((layer_idx, states_stored, capture_time))

    def record_reconstruction(
        self, layer_idx: int, memories_used: int, reconstruction_time: float
    ) -> None:
        self.reconstructions.append((layer_idx, memories_used, reconstruction_time))


class CaptureHook:
    """A forward hook of a layer, as an object so that the model can be copied and pickled."""

    def __init__(self, model: CMRLikeModel, layer_idx: int) -> None:
        self.model, self.layer_idx = model, layer_idx

    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden_states = output[0] if isinstance(output, tuple) else output
        if self.model.memory_enabled:
            self.model._capture_memory_states(hidden_states, self.layer_idx)


class CMRLikeModel(nn.Module):
    """The whole: layers, buffer, scorer, retriever, reconstructor and statistics.

    Args:
        eviction_strategy: ``relevance`` or ``lru``.
        recompute: weave memories in under activation checkpointing.
    """

    def __init__(
        self,
        eviction_strategy: str = "relevance",
        *,
        max_entries_per_layer: int = 6,
        max_total_entries: int = 14,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(5))
        self.output_projection = nn.Linear(HIDDEN, VOCAB)
        self.memory_buffer = LayeredMemoryBuffer(
            max_entries_per_layer, max_total_entries, eviction_strategy
        )
        self.relevance_scorer = RelevanceScorer(HIDDEN, relevance_threshold=0.4)
        self.memory_retriever = AdvancedMemoryRetriever(self.memory_buffer)
        self.reconstruction_integrator = LayeredStateReconstructor(HIDDEN)
        self.memory_enabled = self.reconstruction_enabled = True
        self.recompute = recompute
        self.sequence_counter = 0
        self.performance_monitor: Any = PerformanceMonitor()
        self.performance_stats: dict[str, Any] = {
            "total_captures": 0,  # calls; in other projects states
            "total_reconstructions": 0,  # calls that used no memory too
            "avg_capture_time": 0.0,  # in milliseconds
            "avg_reconstruction_time": 0.0,
            "memory_utilization": 0.0,  # nothing sets it
            "cache_hit_rate": 1.0,  # nothing sets it
            "total_forward_passes": 0,
            "total_memory_operations": 0,
            "reconstruction_quality": 0.99,  # nothing sets it
        }
        self.hooks = [
            self.layers[layer].register_forward_hook(CaptureHook(self, layer)) for layer in TARGETS
        ]

    def _capture_memory_states(self, hidden_states: Tensor, layer_idx: int) -> None:
        start = time.time()
        work(layer_idx)
        scores = self.relevance_scorer(hidden_states)
        states_stored = 0
        for row in range(hidden_states.shape[0]):
            for position in range(hidden_states.shape[1]):
                relevance = scores[row, position].item()
                if relevance > self.relevance_scorer.relevance_threshold:
                    self.memory_buffer.store_state(
                        hidden_state=hidden_states[row, position],
                        layer_idx=layer_idx,
                        position_idx=position,
                        relevance_score=relevance,
                        sequence_id=self.sequence_counter,
                    )
                    states_stored += 1  # also where the buffer refused
        seconds = time.time() - start
        stats = self.performance_stats
        stats["total_captures"] += 1
        stats["total_memory_operations"] += 1
        stats["avg_capture_time"] += 1000 * seconds / stats["total_captures"]
        self.performance_monitor.record_capture(
            layer_idx=layer_idx, states_stored=states_stored, capture_time=seconds
        )

    def _apply_memory_reconstruction(
        self, hidden_states: Tensor, layer_idx: int, topic: int
    ) -> Tensor:
        start = time.time()
        query = hidden_states.detach().mean((0, 1))
        memories = self.memory_retriever.retrieve_memories(
            RetrievalContext(query, layer_idx, topic, min_relevance=0.7 if topic else 0.5)
        )
        enhanced, _info = self.reconstruction_integrator(
            hidden_states, memories, layer_idx=layer_idx
        )
        self.performance_stats["total_reconstructions"] += 1
        self.performance_monitor.record_reconstruction(
            layer_idx=layer_idx, memories_used=0, reconstruction_time=time.time() - start
        )
        return enhanced

    def forward(self, input_ids: Tensor, return_memory_info: bool = False) -> dict[str, Any]:
        """Shape ``(rows, positions)`` in, logits and more out."""
        self.sequence_counter += 1
        self.performance_stats["total_forward_passes"] += 1
        topic = int(input_ids[0, 0]) % 2
        states = self.embedding(input_ids)
        for index, layer in enumerate(self.layers):
            states = states + torch.tanh(layer(states))
            # every other pass leaves the first of them alone
            late = index == INTERVENTIONS[-1] or self.sequence_counter % 2 == 0
            if self.reconstruction_enabled and index in INTERVENTIONS and late:
                weave = self._apply_memory_reconstruction
                if self.recompute and self.training:
                    states = checkpoint(weave, states, index, topic, use_reentrant=False)
                else:
                    states = weave(states, index, topic)
        outputs: dict[str, Any] = {
            "logits": self.output_projection(states),
            "last_hidden_state": states,
        }
        if return_memory_info:
            outputs["memory_stats"] = self.memory_buffer.get_buffer_stats()
            outputs["performance_stats"] = dict(self.performance_stats)
            outputs["top_memories"] = self.get_top_memories(3)
        return outputs

    def get_top_memories(self, k: int) -> list[MemoryEntry]:
        return self.memory_buffer.retrieve_top_k_relevant(k)

    def clear_memory(self) -> None:
        self.memory_buffer.clear_all()
        self.sequence_counter = 0

    def save_memory(self, path: Path) -> None:
        path.write_bytes(pickle.dumps(self.memory_buffer.get_all_entries()))

    def load_memory(self, path: Path) -> None:
        self.memory_buffer.clear_all()
        for entry in pickle.loads(path.read_bytes()):
            self.memory_buffer._insert_entry(entry)


class CMRLikeModule(pl.LightningModule):
    """Trains `CMRLikeModel`: two passes for each batch, and things done to the buffer at times.

    Args:
        folder: where memories are saved and loaded; None: nothing is done to the buffer.
        settings: of the model.
    """

    def __init__(self, folder: Path | None = None, **settings: Any) -> None:
        super().__init__()
        self.net = CMRLikeModel(**settings)
        self.folder = folder
        self.seen: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        if self.folder is None or step in self.seen:
            return
        self.seen.append(step)
        buffer = self.net.memory_buffer
        if step == 12:
            buffer.clear_layer(2)
        elif step == 15:
            self.net.save_memory(self.folder / "memory.pkl")
        elif step == 17:
            buffer.clear_sequence(buffer.get_all_entries()[-1].sequence_id)
        elif step == 20:
            buffer.cleanup_least_relevant(target_entries=9)
        elif step == 25:
            self.net.load_memory(self.folder / "memory.pkl")
        elif step == 30:
            self.net.clear_memory()

    def _loss(self, outputs: dict[str, Any], ids: Tensor) -> Tensor:
        logits = outputs["logits"][:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids = batch[0]
        outputs = self.net(ids)
        again = self.net(ids.flip(1), return_memory_info=True)
        if batch_idx % 3 == 0:
            self.log("train/relevance", self.net.relevance_scorer(self.net.embedding(ids)).mean())
            self.net.memory_buffer.retrieve_by_layer(1, k=2)
        return self._loss(outputs, ids) + self._loss(again, ids.flip(1))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self._loss(self.net(batch[0]), batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class ScoreBuffer:
    """The least that is a layered buffer: pairs in bounded deques, and no method but one."""

    def __init__(self, max_entries_per_layer: int) -> None:
        self.max_entries_per_layer = max_entries_per_layer
        self.layer_buffers: dict[str, deque[tuple[Tensor, float]]] = {}

    def store_state(self, hidden_state: Tensor, layer_idx: str, score: float) -> None:
        """Keep a state; the oldest leaves by itself."""
        work(2 if layer_idx == "low" else 3)
        kept = self.layer_buffers.setdefault(layer_idx, deque(maxlen=self.max_entries_per_layer))
        kept.append((hidden_state.detach().clone(), score))


class ScoreModel(nn.Module):
    """Stores what it sees by itself, without a capture method or a scorer."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = ScoreBuffer(4)
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states: Tensor) -> Tensor:
        """Shape ``(rows, hidden)``; the first row goes to one layer, all to the other."""
        self.buffer.store_state(states[0], "low", 0.5)
        for row in states:
            self.buffer.store_state(row, layer_idx="high", score=1.0)
        return self.linear(states)


class HeldModel(nn.Module):
    """Stores in a buffer that it holds somewhere in ``holder``, and reaches by ``find``."""

    def __init__(self, holder: Any, find: Callable[[], ScoreBuffer]) -> None:
        super().__init__()
        self.holder, self.find = holder, find
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states: Tensor) -> Tensor:
        self.find().store_state(states[0], "low", 0.5)
        return self.linear(states)


class BufferReader(nn.Module):
    """A reconstructor that is given the buffer and asks it; it says nothing of how it went."""

    def forward(
        self, hidden_states: Tensor, memory_buffer: LayeredMemoryBuffer, layer_idx: int
    ) -> Tensor:
        work(1)
        for entry in memory_buffer.retrieve_by_layer(layer_idx, k=3):
            hidden_states = hidden_states + entry.hidden_state
        return hidden_states


class PassedModel(nn.Module):
    """Holds no memory: whoever calls it hands one over."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = BufferReader()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states: Tensor, memory_buffer: LayeredMemoryBuffer) -> Tensor:
        """Shape ``(rows, hidden)``."""
        states = self.reader(states, memory_buffer=memory_buffer, layer_idx=3)
        for position, row in enumerate(states):
            memory_buffer.store_state(row, 3, position, 0.5 + position / 10)
        return self.linear(states)


def sequences(batches: int, seed: int = 1) -> Dataset[Any]:
    """Random ids, the same in every call."""
    make = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randint(0, VOCAB, (batches * ROWS, LENGTH), generator=make))


def loader(batches: int, seed: int = 1) -> Any:
    """A loader of `sequences`."""
    return DataLoader(sequences(batches, seed), ROWS)
