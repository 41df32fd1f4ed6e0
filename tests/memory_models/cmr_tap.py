"""An independent count of what the memory of `tests.memory_models.cmr_like` does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from tests.memory_models import cmr_like
from tests.memory_models.cmr_like import HIDDEN, MemoryEntry
from tests.memory_models.tally import Tally, tapped

ENTRY_BYTES = HIDDEN * 4 + HIDDEN // 2 * 2
"""A state in single and a key in half precision."""


class CMRTap(Tally):
    """Counts at the classes of the model; what is held is counted by what enters and leaves.

    Attributes:
        held: entries by layer.
        durations: of every capture call of training, in quanta.
    """

    def __init__(self, patch: Any) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()
        self.durations: list[int] = []
        self._inside: Counter[str] = Counter()
        patch.setattr(cmr_like, "work", self.spend)
        buffer = cmr_like.LayeredMemoryBuffer
        tapped(cmr_like.CMRLikeModel, "_capture_memory_states", self._capture, patch)
        tapped(cmr_like.RelevanceScorer, "forward", self._score, patch)
        tapped(buffer, "store_state", self._store, patch)
        tapped(buffer, "_insert_entry", self._insert, patch)
        tapped(buffer, "_remove_entry", self._remove, patch)
        tapped(buffer, "clear_layer", self._clear_layer, patch)
        for name in ("clear_all", "clear_sequence"):
            tapped(buffer, name, self._clear, patch)
        tapped(buffer, "retrieve_by_layer", self._by_layer, patch)
        tapped(buffer, "retrieve_top_k_relevant", self._top, patch)
        tapped(cmr_like.AdvancedMemoryRetriever, "retrieve_memories", self._memories, patch)
        tapped(cmr_like.LayeredStateReconstructor, "forward", self._reconstruct, patch)

    def entries(self) -> dict[int, float]:
        """What each layer holds now."""
        return {layer: float(count) for layer, count in self.held.items()}

    def should_be(self, layer: int) -> float:
        """Entries of a layer by what all stages together did to it."""
        signs = {"states_stored": 1, "states_loaded": 1, "eviction_count": -1, "states_cleared": -1}
        return sum(sign * self.everywhere(name, layer) for name, sign in signs.items())

    def _within(self, kind: str, call: Any, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Call, and say how many quanta it took."""
        self._inside[kind] += 1
        begun = self.quanta()
        try:
            return call(*args, **kwargs), self.quanta() - begun
        finally:
            self._inside[kind] -= 1

    def _capture(self, call: Any, model: Any, hidden_states: Tensor, layer_idx: int) -> None:
        _, took = self._within("capture", call, model, hidden_states, layer_idx)
        if self.counts:
            self.add("capture_calls", layer_idx)
            self.add("capture_quanta", layer_idx, took)
            # the model scores every position just once
            self.add("states_considered", layer_idx, self._inside.pop("scored"))
            if self.stage == "train":
                self.durations.append(took)

    def _score(self, call: Any, scorer: Any, hidden_states: Tensor) -> Tensor:
        if self._inside["capture"] and self.counts:
            self._inside["scored"] += len(hidden_states) * len(hidden_states[0])
        return call(scorer, hidden_states)

    def _store(self, call: Any, buffer: Any, *args: Any, **kwargs: Any) -> bool:
        took, _ = self._within("store", call, buffer, *args, **kwargs)
        layer_idx = kwargs["layer_idx"] if "layer_idx" in kwargs else args[1]
        if self.counts:
            self.add("states_attempted", layer_idx)
            self.add("states_captured", layer_idx)
            self.add("states_stored" if took else "states_rejected", layer_idx)
        return took

    def _insert(self, call: Any, buffer: Any, entry: MemoryEntry) -> None:
        call(buffer, entry)
        if self.off:
            return
        self.held[entry.layer_idx] += 1
        if not self._inside["store"]:
            self.add("states_loaded", entry.layer_idx)

    def _remove(self, call: Any, buffer: Any, entry: MemoryEntry) -> None:
        call(buffer, entry)
        if self.off:
            return
        self.held[entry.layer_idx] -= 1
        name = "states_cleared" if self._inside["clear"] else "eviction_count"
        self.add(name, entry.layer_idx)

    def _clear(self, call: Any, buffer: Any, *args: Any) -> None:
        gone = dict(self.held)
        by_one = bool(args)  # a sequence goes entry by entry
        self._within("clear", call, buffer, *args)
        if self.off:
            return
        self.add("clear_count", None)
        if not by_one:
            for layer, count in gone.items():
                self.add("states_cleared", layer, count)
                self.held[layer] = 0

    def _clear_layer(self, call: Any, buffer: Any, layer_idx: int) -> None:
        self._within("clear", call, buffer, layer_idx)
        if not self.off:
            self.add("clear_count", layer_idx)
            self.add("states_cleared", layer_idx, self.held[layer_idx])
            self.held[layer_idx] = 0

    def _retrieved(self, layer: int | None, entries: list[Any], took: int) -> None:
        if self.counts and not self._inside["retrieval"]:
            self.add("total_retrievals", layer)
            self.add("entries_retrieved", layer, len(entries))
            self.add("retrieval_quanta", layer, took)

    def _by_layer(self, call: Any, buffer: Any, layer_idx: int, **more: Any) -> Any:
        self._inside["asked"] += 1
        found, took = self._within("retrieval", call, buffer, layer_idx, **more)
        self._retrieved(layer_idx, found, took)
        return found

    def _top(self, call: Any, buffer: Any, k: int) -> Any:
        found, took = self._within("retrieval", call, buffer, k)
        self._retrieved(None, found, took)
        return found

    def _memories(self, call: Any, retriever: Any, context: Any) -> Any:
        layer, asked = context.current_layer_idx, self._inside["asked"]
        found, took = self._within("retrieval", call, retriever, context)
        self._retrieved(layer, found, took)
        if self.counts:
            self.add("cached_retrievals", layer)
            # an answer for which nobody asked the buffer came from the cache
            self.add("cache_hits", layer, self._inside["asked"] == asked)
        return found

    def _reconstruct(
        self, call: Any, module: Any, states: Tensor, memories: list[Any], layer_idx: int
    ) -> Any:
        begun = self.quanta()
        out = call(module, states, memories, layer_idx)
        if self.counts:
            self.add("reconstruction_calls", layer_idx)
            self.add("reconstruction_quanta", layer_idx, self.quanta() - begun)
            used = min(len(memories), module.max_memory_tokens)
            self.add("total_reconstructions", layer_idx, used > 0)
            self.add("used", layer_idx, used)
            if cmr_like.can_rate(used, layer_idx):
                self.add("rated", layer_idx)
                self.add("rating", layer_idx, (used + layer_idx) / 8)
        return out
