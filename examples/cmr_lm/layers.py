"""The parts of the model: a transformer block, and a memory layer between two blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmr_monitor_callbacks import CMRProbe
from examples.cmr_lm.memory import LayeredMemoryBuffer


class Block(nn.Module):
    """Pre-norm causal self-attention and MLP; shapes ``(batch, time, dim)`` in and out."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        batch, time, dim = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, dim))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@dataclass
class LayerCounters:
    """What a memory layer did, ever; ``similarity`` is summed over the retrievals."""

    considered: int = 0
    attempted: int = 0
    captured: int = 0
    stored: int = 0
    reconstructions: int = 0
    retrievals: int = 0
    cache_hits: int = 0
    retrieval_seconds: float = 0.0
    similarity: float = 0.0
    capture_seconds: list[float] = field(default_factory=list)
    reconstruction_seconds: list[float] = field(default_factory=list)


KEEP_SECONDS = 1000
"""Durations that a layer keeps of each kind."""


class MemoryLayer(nn.Module):
    """Reads memories of earlier steps into the stream, then captures states of this one.

    Args:
        index: id of the layer.
        dim: size of a state.
        buffer: shared by all memory layers.
        retrieve: entries read for each sequence.
        capture: states captured of each sequence, at most.
        threshold: relevance that a state must reach to be captured.
    """

    def __init__(
        self,
        index: int,
        dim: int,
        buffer: LayeredMemoryBuffer,
        retrieve: int,
        capture: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.index = index
        self.k = retrieve
        self.capture_at_most = capture
        self.threshold = threshold
        # in a list: the model owns the buffer, whose state must not appear once per layer
        self._shared = [buffer]
        self.norm = nn.LayerNorm(dim)
        self.scorer = nn.Linear(dim, 1)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.gate = nn.Linear(dim, 1)
        self.out = nn.Linear(dim, dim)
        self.counters = LayerCounters()
        self.probe = CMRProbe(index)

    @property
    def buffer(self) -> LayeredMemoryBuffer:
        """The buffer that all memory layers share."""
        return self._shared[0]

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Reconstruct, then capture (in training only).

        Args:
            x: shape ``(batch, time, dim)``.
            step: the current step; what was stored in it is not read in it.
        """
        with self.probe.timer("retrieval"):  # in a profile each of them has its name
            memory = self._retrieve(x, step)
        with self.probe.timer("reconstruction"):
            reconstructed = self._reconstruct(x, memory)
        if self.training:
            with self.probe.timer("capture"):
                self._capture(x.detach(), step)
        return reconstructed

    def clear(self) -> int:
        """Forget this layer's entries, and say so; how many there were."""
        count = self.buffer.clear(self.index)
        self.probe.buffer(0, self.buffer.layer_buffers[self.index].capacity, 0, cleared=count)
        return count

    def _retrieve(self, x: Tensor, step: int) -> Tensor | None:
        """Ask with the first positions of each sequence, for those after them."""
        start = time.perf_counter()
        query = x[:, : self._asking(x)].detach().mean(1)
        found = self.buffer.retrieve(self.index, query, self.k, step, remember=self.training)
        seconds = time.perf_counter() - start
        if found is None:
            return None
        operations, similarity = len(x), float(found.similarity)
        self.counters.retrievals += operations
        self.counters.cache_hits += found.hits
        self.counters.retrieval_seconds += seconds
        self.counters.similarity += operations * similarity
        self.probe.retrieval(operations, operations * self.k, found.hits, seconds, similarity)
        return found.states

    @staticmethod
    def _asking(x: Tensor) -> int:
        """Positions that ask: what they find must not reach them, or the future would."""
        return max(1, x.shape[1] // 4)

    def _reconstruct(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """Attend to the memories and blend what they say into the stream, after the asking ones."""
        if memory is None:
            self.probe.reconstruction(0)
            return x
        start = time.perf_counter()
        asking = self._asking(x)
        normed = self.norm(x[:, asking:])
        key, value = self.key_value(self.norm(memory.to(x.dtype))).chunk(2, dim=2)
        scores = self.query(normed) @ key.transpose(1, 2) / key.shape[2] ** 0.5
        # the scorer's own judgement of each memory takes part, and is trained by it
        relevance = self.scorer(self.norm(memory.to(x.dtype))).transpose(1, 2)
        latent = (scores + relevance).softmax(2) @ value
        gate = self.gate(normed).sigmoid()
        woven = x[:, asking:] + gate * self.out(latent)
        out = torch.cat((x[:, :asking], woven), dim=1)
        seconds = time.perf_counter() - start
        self.counters.reconstructions += 1
        _keep(self.counters.reconstruction_seconds, seconds)
        # how much of the stream the memories account for, by direction
        cosine = functional.cosine_similarity(latent.detach(), normed.detach(), dim=2).mean()
        quality = (1 + cosine.float()) / 2
        self.probe.reconstruction(memory.shape[0] * memory.shape[1], quality, seconds)
        return out

    @torch.no_grad()
    def _capture(self, x: Tensor, step: int) -> None:
        """Hand the most relevant states to the buffer, and say what became of them."""
        store = self.buffer.layer_buffers[self.index]
        evicted = store.evicted
        start = time.perf_counter()
        relevance = self.scorer(self.norm(x)).squeeze(2).sigmoid().float()
        top = relevance.topk(min(self.capture_at_most, x.shape[1]), dim=1)
        rows = torch.arange(len(x), device=x.device)[:, None]
        chosen = top.values >= self.threshold
        states, scores = x[rows, top.indices][chosen].float(), top.values[chosen]
        finite = states.isfinite().all(1)
        states, scores = states[finite], scores[finite]
        stored = self.buffer.store_states(self.index, states, scores, step)
        seconds = time.perf_counter() - start
        attempted, captured, kept = int(chosen.sum()), len(states), int(stored.sum())
        counters = self.counters
        counters.considered += relevance.numel()
        counters.attempted += attempted
        counters.captured += captured
        counters.stored += kept
        _keep(counters.capture_seconds, seconds)
        self.probe.capture(attempted, captured, kept, seconds, considered=relevance.numel())
        store = self.buffer.layer_buffers[self.index]
        self.probe.buffer(
            store.size, store.capacity, self.buffer.nbytes(self.index), store.evicted - evicted
        )


def _keep(times: list[float], seconds: float) -> None:
    times.append(seconds)
    del times[:-KEEP_SECONDS]
