"""What the memory buffer is made of: a layer's entries, an answer, and the cache of answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerStore:
    """The entries of one layer, in preallocated rows; rows ``0..size-1`` are in use.

    Attributes:
        states: shape ``(capacity, dim)``.
        relevance: shape ``(capacity,)``, in 0..1.
        stored_at: shape ``(capacity,)``, step at which an entry came.
        read_at: shape ``(capacity,)``, step at which it was last read, or came.
        size: entries held.
        evicted: entries dropped to make room, ever.
        cleared: entries removed by `LayeredMemoryBuffer.clear`, ever.
    """

    states: Tensor
    relevance: Tensor
    stored_at: Tensor
    read_at: Tensor
    size: int = 0
    evicted: int = 0
    cleared: int = 0

    @classmethod
    def empty(cls, capacity: int, dim: int, device: torch.device) -> LayerStore:
        """A store without entries."""
        return cls(
            torch.zeros(capacity, dim, device=device),
            torch.zeros(capacity, device=device),
            torch.zeros(capacity, dtype=torch.int64, device=device),
            torch.zeros(capacity, dtype=torch.int64, device=device),
        )

    @property
    def capacity(self) -> int:
        """Entries that can be held."""
        return len(self.states)


@dataclass(frozen=True)
class Retrieved:
    """What a retrieval gives back.

    Attributes:
        states: shape ``(batch, k, dim)``.
        relevance: shape ``(batch, k)``.
        hits: queries answered from the cache.
        similarity: mean cosine of query and entry over the queries, clipped to 0..1; 0-d.
    """

    states: Tensor
    relevance: Tensor
    hits: int
    similarity: Tensor


@dataclass
class CachedAnswer:
    """Rows that were found, when their entries came, and the step of the answer."""

    rows: Tensor
    stored_at: Tensor
    step: int


@dataclass
class RetrievalCache:
    """Answers by coarse query: the signs of a few fixed projections."""

    lifetime: int
    answers: dict[tuple[int, int], CachedAnswer] = field(default_factory=dict)

    def find(self, key: tuple[int, int], store: LayerStore, step: int) -> Tensor | None:
        """The rows found for this coarse query, if young enough and all still there."""
        found = self.answers.get(key)
        if found is None or step - found.step > self.lifetime:
            return None
        if not torch.equal(store.stored_at[found.rows], found.stored_at):
            return None
        return found.rows

    def forget(self, layer: int) -> None:
        """Drop the answers of a layer."""
        self.answers = {key: found for key, found in self.answers.items() if key[0] != layer}
