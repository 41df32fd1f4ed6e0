"""The layered memory buffer: bounded per layer and in all, evicting by policy, with a cache."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from examples.cmr_lm.entries import CachedAnswer, LayerStore, RetrievalCache, Retrieved

Policy = Literal["lru", "relevance", "mixed"]


class LayeredMemoryBuffer(nn.Module):
    """Hidden states kept by layer.

    An entry read in the last ``protect_steps`` steps is in use and is not evicted. A state that
    finds its layer full of entries in use is refused: a layer whose capacity is too small for what
    it reads stores next to nothing.

    Args:
        layers: ids of the layers.
        dim: size of a state.
        max_entries_per_layer: capacity of each layer, or one for all.
        max_total_entries: capacity of all together.
        policy: what is dropped first: the least recently read (``lru``), the least relevant
            (``relevance``), or by both (``mixed``).
        protect_steps: steps for which a read protects an entry.
        cache_steps: steps for which a cached answer is good.
    """

    planes: Tensor

    def __init__(
        self,
        layers: list[int],
        dim: int,
        max_entries_per_layer: dict[int, int] | int,
        max_total_entries: int,
        policy: Policy = "mixed",
        protect_steps: int = 8,
        cache_steps: int = 4,
        hash_bits: int = 8,
    ) -> None:
        super().__init__()
        if policy not in ("lru", "relevance", "mixed"):
            raise ValueError(f"policy must be lru, relevance or mixed, got {policy!r}")
        self.dim = dim
        self.max_total_entries = max_total_entries
        self.policy = policy
        self.protect_steps = protect_steps
        per_layer = max_entries_per_layer
        self.layer_buffers = {
            layer: LayerStore.empty(
                per_layer if isinstance(per_layer, int) else per_layer[layer],
                dim,
                torch.device("cpu"),
            )
            for layer in layers
        }
        self.cache = RetrievalCache(cache_steps)
        generator = torch.Generator().manual_seed(0)
        planes = torch.randn(dim, hash_bits, generator=generator)
        self.register_buffer("planes", planes, persistent=False)

    @property
    def total_entries(self) -> int:
        """Entries held by all layers."""
        return sum(store.size for store in self.layer_buffers.values())

    def nbytes(self, layer: int) -> int:
        """Payload of a layer's entries in bytes; rows not in use do not count."""
        store = self.layer_buffers[layer]
        return store.size * self.dim * store.states.element_size()

    @torch.no_grad()
    def store_states(self, layer: int, states: Tensor, relevance: Tensor, step: int) -> Tensor:
        """Take states in, the most relevant first, as far as there is room.

        Args:
            layer: id of the layer.
            states: shape ``(n, dim)``.
            relevance: shape ``(n,)``, in 0..1.
            step: the current step.

        Returns:
            shape ``(n,)``, bool: which were stored.
        """
        store = self._on(layer, states.device)
        order = relevance.argsort(descending=True, stable=True)
        free = max(0, min(store.capacity - store.size, self.max_total_entries - self.total_entries))
        fresh = order[:free]
        rows = torch.arange(store.size, store.size + len(fresh), device=states.device)
        store.size += len(fresh)
        waiting = order[len(fresh) :]
        victims = self._evictable(store, step, len(waiting))
        if self.policy == "relevance":
            # never drop an entry for a less relevant one
            waiting = waiting[: len(victims)]
            better = relevance[waiting] > store.relevance[victims]
            waiting, victims = waiting[better], victims[better]
        store.evicted += len(victims)
        taken = torch.cat((fresh, waiting[: len(victims)]))
        rows = torch.cat((rows, victims))
        store.states[rows] = states[taken].to(store.states.dtype)
        store.relevance[rows] = relevance[taken].to(store.relevance.dtype)
        store.stored_at[rows] = step
        store.read_at[rows] = step
        stored = torch.zeros(len(states), dtype=torch.bool, device=states.device)
        stored[taken] = True
        return stored

    def _evictable(self, store: LayerStore, step: int, wanted: int) -> Tensor:
        """Rows that may be dropped, the first to go first."""
        read_at = store.read_at[: store.size]
        idle = step - read_at
        relevance = store.relevance[: store.size]
        if self.policy == "lru":
            value = -idle.float()
        elif self.policy == "relevance":
            value = relevance
        else:
            value = relevance - idle.float() / (idle.max().clamp(min=1) if len(idle) else 1)
        # an entry that was stored in this very step is as much in use as one just read
        may_go = (idle > self.protect_steps).nonzero().squeeze(1)
        return may_go[value[may_go].argsort(stable=True)][:wanted]

    @torch.no_grad()
    def retrieve(
        self, layer: int, queries: Tensor, k: int, step: int, *, remember: bool = True
    ) -> Retrieved | None:
        """The ``k`` entries most like each query; None while the layer holds fewer.

        Args:
            layer: id of the layer.
            queries: shape ``(batch, dim)``; each is an operation of its own.
            k: entries for each query.
            step: the current step.
            remember: whether the read protects the entries and its answer is cached; false leaves
                the buffer as it was.
        """
        store = self._on(layer, queries.device)
        if store.size < k:
            return None
        unit = nn.functional.normalize(queries.float(), dim=1)
        weights = 2 ** torch.arange(self.planes.shape[1], device=queries.device)
        codes = ((unit @ self.planes.float() > 0) * weights).sum(1).tolist()
        found = [self.cache.find((layer, code), store, step) for code in codes]
        missing = [i for i, rows in enumerate(found) if rows is None]
        if missing:
            held = nn.functional.normalize(store.states[: store.size], dim=1)
            best = (unit[missing] @ held.T).topk(k, dim=1).indices
            for i, rows in zip(missing, best, strict=True):
                found[i] = rows
                if remember:
                    cached = CachedAnswer(rows, store.stored_at[rows].clone(), step)
                    self.cache.answers[layer, codes[i]] = cached
        rows = torch.stack([r for r in found if r is not None])
        if remember:
            store.read_at[rows.flatten()] = step
        states = store.states[rows]
        cosine = torch.einsum("bd,bkd->bk", unit, nn.functional.normalize(states, dim=2))
        similarity = cosine.mean().clamp(0, 1)
        return Retrieved(states, store.relevance[rows], len(codes) - len(missing), similarity)

    def set_capacity(self, layer: int, capacity: int) -> None:
        """Give a layer another capacity, not under what it holds."""
        old = self.layer_buffers[layer]
        if capacity < old.size:
            raise ValueError(f"layer {layer} holds {old.size} entries, capacity {capacity} is less")
        new = LayerStore.empty(capacity, self.dim, old.states.device)
        for name in ("states", "relevance", "stored_at", "read_at"):
            getattr(new, name)[: old.size] = getattr(old, name)[: old.size]
        new.size, new.evicted, new.cleared = old.size, old.evicted, old.cleared
        self.layer_buffers[layer] = new

    def clear(self, layer: int) -> int:
        """Forget a layer's entries; how many there were."""
        store = self.layer_buffers[layer]
        count = store.size
        store.size = 0
        store.cleared += count
        self.cache.forget(layer)
        return count

    def get_buffer_stats(self) -> dict[str, Any]:
        """The specification's statistics of the buffer."""
        sizes = {layer: store.size for layer, store in self.layer_buffers.items()}
        evicted = sum(store.evicted for store in self.layer_buffers.values())
        limit = min(self.max_total_entries, sum(s.capacity for s in self.layer_buffers.values()))
        return {
            "total_entries": self.total_entries,
            "entries_per_layer": sizes,
            "memory_size_mb": sum(self.nbytes(layer) for layer in sizes) / 2**20,
            "utilization_rate": self.total_entries / limit,
            "eviction_count": evicted,
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Entries, counters and cached answers, for a checkpoint."""
        answers = [
            (layer, code, found.rows, found.stored_at, found.step)
            for (layer, code), found in self.cache.answers.items()
        ]
        layers = {
            str(layer): {
                "capacity": store.capacity,
                "states": store.states[: store.size].clone(),
                "relevance": store.relevance[: store.size].clone(),
                "stored_at": store.stored_at[: store.size].clone(),
                "read_at": store.read_at[: store.size].clone(),
                "evicted": store.evicted,
                "cleared": store.cleared,
            }
            for layer, store in self.layer_buffers.items()
        }
        return {"layers": layers, "answers": answers}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        for layer, old in self.layer_buffers.items():
            saved = state["layers"][str(layer)]
            store = LayerStore.empty(saved["capacity"], self.dim, old.states.device)
            store.size = len(saved["states"])
            for name in ("states", "relevance", "stored_at", "read_at"):
                getattr(store, name)[: store.size] = saved[name]
            store.evicted, store.cleared = saved["evicted"], saved["cleared"]
            self.layer_buffers[layer] = store
        self.cache.answers = {
            (layer, code): CachedAnswer(rows, stored_at, step)
            for layer, code, rows, stored_at, step in state["answers"]
        }

    def _on(self, layer: int, device: torch.device) -> LayerStore:
        """The layer's store, moved to where the states are."""
        store = self.layer_buffers[layer]
        if store.states.device != device:
            for name in ("states", "relevance", "stored_at", "read_at"):
                setattr(store, name, getattr(store, name).to(device))
            self.cache.forget(layer)  # its answers name rows of the old device
        return store
