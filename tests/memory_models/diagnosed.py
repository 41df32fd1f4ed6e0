"""A memory model made to be broken: each of its settings is one thing that can go wrong.

Nobody instrumented it; its buffer is plain Python, its entries say when they came and were read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

DIM, ROWS, POSITIONS = 8, 4, 8


@dataclass(eq=False)
class Entry:
    """One state that is held."""

    hidden_state: Tensor
    layer_idx: int
    relevance: float
    stored_at: int
    last_access: int
    access_count: int = 0


@dataclass
class Settings:
    """What can be broken.

    Attributes:
        memory_layers: whose states are captured.
        interventions: after which memories are woven in.
        skips: layers whose memory the forward leaves out.
        capacity: entries of a layer.
        policy: ``oldest`` leaves when the layer is full; ``keep``: new ones are refused; ``grow``:
            nobody leaves; ``refuse``: nothing is taken.
        threshold: relevance that a state must have to be captured.
        keeps: what is stored of a state.
        rates: what relevance is stored.
        retrieve: entries read for each row, by layer.
        marks: whether a read is marked on the entry.
        gate: how much of a memory is woven in.
        qualities: of the reconstruction, by layer.
        dead, double: counters of the model that stand still, or count twice.
        work: called with the entries of a layer, when it is searched.
    """

    memory_layers: tuple[int, ...] = (1, 3, 5)
    interventions: tuple[int, ...] = (1, 3, 5)
    skips: tuple[int, ...] = ()
    capacity: int = 64
    policy: str = "oldest"
    threshold: float = 0.5
    keeps: Callable[[Tensor], Tensor] = torch.Tensor.clone
    rates: Callable[[float], float] = float
    retrieve: dict[int, int] = field(default_factory=lambda: {1: 4, 3: 4, 5: 4})
    marks: bool = True
    gate: float = 0.1
    qualities: dict[int, float] = field(default_factory=lambda: {1: 0.8, 3: 0.7, 5: 0.75})
    dead: bool = False
    double: bool = False
    work: Callable[[int], None] = lambda entries: None


class Buffer:
    """Entries by layer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layer_buffers: dict[int, list[Entry]] = {i: [] for i in settings.memory_layers}
        self.max_entries_per_layer = settings.capacity
        self.now = 0
        self.stats = {"total_insertions": 0, "total_evictions": 0}

    def store_state(self, hidden_state: Tensor, layer_idx: int, relevance: float) -> bool:
        """Keep a state; False: it is refused."""
        held, policy = self.layer_buffers[layer_idx], self.settings.policy
        full = len(held) >= self.max_entries_per_layer
        if policy == "refuse" or (policy == "keep" and full):
            return False
        if full and policy == "oldest":
            self._remove_entry(held[0])
        state = self.settings.keeps(hidden_state.detach())
        rated = self.settings.rates(relevance)
        self._insert_entry(Entry(state, layer_idx, rated, self.now, self.now))
        if not self.settings.dead:
            self.stats["total_insertions"] += 2 if self.settings.double else 1
        return True

    def _insert_entry(self, entry: Entry) -> None:
        self.layer_buffers[entry.layer_idx].append(entry)

    def _remove_entry(self, entry: Entry) -> None:
        self.layer_buffers[entry.layer_idx].remove(entry)
        self.stats["total_evictions"] += 1

    def retrieve_similar(self, query: Tensor, layer_idx: int, top_k: int) -> list[Entry]:
        """The entries of a layer that are most like a query."""
        held = self.layer_buffers[layer_idx]
        self.settings.work(len(held))
        if not held or not top_k:
            return []
        states = torch.stack([entry.hidden_state for entry in held])
        best = torch.cosine_similarity(states, query[None]).topk(min(top_k, len(held))).indices
        found = [held[i] for i in best.tolist()]
        for entry in found if self.settings.marks else ():
            entry.last_access, entry.access_count = self.now, entry.access_count + 1
        return found


class Scorer(nn.Module):
    """Relevance of each position, a fixed function of it."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.relevance_threshold = threshold

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Shape ``(rows, positions, DIM)`` in, ``(rows, positions)`` out."""
        return torch.sigmoid(hidden_states.sum(2))


class Reconstructor(nn.Module):
    """Weaves memories into the stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.mix = nn.Linear(DIM, DIM)

    def forward(
        self, hidden_states: Tensor, memories: list[Entry], layer_idx: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """States of one shape in and out, and what was used."""
        info: dict[str, Any] = {"num_memories_used": len(memories)}
        if not memories:
            return hidden_states, info
        info["reconstruction_quality"] = self.settings.qualities.get(layer_idx, 0.5)
        pooled = torch.stack([entry.hidden_state for entry in memories]).mean(0)
        return hidden_states + self.settings.gate * torch.tanh(self.mix(pooled)), info


class Diagnosed(nn.Module):
    """Six blocks, some with a memory."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.settings = settings = Settings(**changes)
        self.blocks = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(6))
        self.head = nn.Linear(DIM, 1)
        self.relevance_scorer = Scorer(settings.threshold)
        self.reconstructor = Reconstructor(settings)
        self.memory_buffer = Buffer(settings)
        self.optimizer_stats = {"threshold_adjustments": 0}

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(rows, positions, DIM)`` in, ``(rows, positions, 1)`` out."""
        settings = self.settings
        for layer, block in enumerate(self.blocks):
            x = x + torch.tanh(block(x)) / 4
            if layer in settings.interventions:
                x = self._weave(x, layer)
            if layer in settings.memory_layers and layer not in settings.skips and self.training:
                self._capture_states(x.detach(), layer)
        self.memory_buffer.now += self.training
        out: Tensor = self.head(x)
        return out

    def _weave(self, x: Tensor, layer: int) -> Tensor:
        top_k = self.settings.retrieve.get(layer, 0)
        memories = [
            entry
            for row in x.detach()
            for entry in self.memory_buffer.retrieve_similar(row.mean(0), layer, top_k)
        ]
        out: Tensor
        out, _ = self.reconstructor(x, memories, layer)
        return out

    def _capture_states(self, hidden_states: Tensor, layer_idx: int) -> None:
        scores = self.relevance_scorer(hidden_states)
        chosen = scores >= self.relevance_scorer.relevance_threshold
        for row, at in chosen.nonzero().tolist():
            self.memory_buffer.store_state(
                hidden_states[row, at], layer_idx, relevance=float(scores[row, at])
            )


def batches(count: int, seed: int = 1) -> list[Tensor]:
    """Random states, the same in every call."""
    make = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, ROWS, POSITIONS, DIM, generator=make))


def train(
    model: nn.Module, steps: int, around: Any, each: Callable[[int], None] = lambda step: None
) -> None:
    """A plain loop.

    Args:
        model: trained in place.
        steps: of it.
        around: makes a context manager for each step, as ``monitor.track_performance``.
        each: called after each step with its number.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for step, x in enumerate(batches(steps)):
        with around():
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        each(step)
