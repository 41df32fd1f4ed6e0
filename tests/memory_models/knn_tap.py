"""An independent count of what KNN memories do, at the methods of their class."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable
from typing import Any

from memorizing_transformers_pytorch import KNNMemory
from memorizing_transformers_pytorch.knn_memory import KNN
from torch import Tensor

from tests.memory_models.tally import Tally, tapped


class KNNTap(Tally):
    """Counts what is added, found, wiped and cleared.

    What an index holds is counted by what goes into it and by its resets, not asked of it.

    Args:
        patch: what replaces the methods.
        layers: ids by the order in which memories of one list are made.
    """

    def __init__(self, patch: Any, layers: tuple[str, ...]) -> None:
        super().__init__()
        self._layers = layers
        self._made = 0
        self._wiped: Counter[str] = Counter()
        self._inside = ""
        self._memories: dict[Hashable, weakref.ref[KNNMemory]] = {}
        self._layer_of: weakref.WeakKeyDictionary[KNNMemory, str] = weakref.WeakKeyDictionary()
        self._held: weakref.WeakKeyDictionary[KNN, int] = weakref.WeakKeyDictionary()
        tapped(KNNMemory, "__init__", self._make, patch)
        for name, tap in (("add", self._add), ("search", self._search), ("clear", self._clear)):
            tapped(KNNMemory, name, tap, patch)
        tapped(KNN, "add", self._add_keys, patch)
        tapped(KNN, "reset", self._reset, patch)

    def entries(self) -> dict[Hashable, float]:
        """What the memories that are still there hold, by layer."""
        alive = {layer: ref() for layer, ref in self._memories.items()}
        return {
            layer: float(sum(self._held[knn] for knn in memory.knns))
            for layer, memory in alive.items()
            if memory is not None
        }

    def _make(self, call: Any, memory: KNNMemory, *args: Any, **kwargs: Any) -> None:
        layer = self._layers[self._made % len(self._layers)]
        self._made += 1
        call(memory, *args, **kwargs)
        self._memories[layer] = weakref.ref(memory)
        self._layer_of[memory] = layer

    def _add_keys(self, call: Any, knn: KNN, x: Any, ids: Any) -> Any:
        out = call(knn, x, ids)  # wipes the index first if it is full
        self._held[knn] += len(x)
        return out

    def _reset(self, call: Any, knn: KNN) -> None:
        call(knn)
        if self._inside:
            self._wiped[self._inside] += self._held[knn]
        self._held[knn] = 0

    def _add(self, call: Any, memory: KNNMemory, memories: Tensor) -> None:
        layer = self._layer_of[memory]
        begun, self._wiped["add"] = self.quanta(), 0
        self._inside = "add"
        call(memory, memories)
        self._inside = ""
        self.spend(2 + self._layers.index(layer))
        rows, length = memories.shape[:2]
        if not self.counts:
            return
        self.add("capture_calls", layer)
        self.add("states_attempted", layer, rows * length)
        self.add("states_captured", layer, rows * length)
        self.add("states_stored", layer, rows * min(length, memory.max_memories))
        self.add("states_rejected", layer, rows * max(0, length - memory.max_memories))
        self.add("eviction_count", layer, self._wiped["add"])
        self.add("capture_quanta", layer, self.quanta() - begun)

    def _search(self, call: Any, memory: KNNMemory, queries: Tensor, topk: int) -> Any:
        layer = self._layer_of[memory]
        begun = self.quanta()
        key_values, mask = call(memory, queries, topk)
        self.spend(1 + int(mask.any()))
        if self.counts:
            found = [bool(slot) for slot in mask.flatten().tolist()]
            self.add("total_retrievals", layer)
            self.add("entries_retrieved", layer, sum(found))
            self.add("retrieval_hits", layer, sum(found))
            self.add("slots_asked", layer, len(found))
            self.add("retrieval_quanta", layer, self.quanta() - begun)
        return key_values, mask

    def _clear(self, call: Any, memory: KNNMemory, batch_indices: Any = None) -> None:
        layer = self._layer_of[memory]
        self._wiped["clear"] = 0
        self._inside = "clear"
        call(memory, batch_indices)
        self._inside = ""
        if self.counts:
            self.add("clears", layer)
            self.add("states_cleared", layer, self._wiped["clear"])
