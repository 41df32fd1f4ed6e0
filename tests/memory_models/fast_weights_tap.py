"""An independent count of what titans' neural memories store and read, at their class's methods."""

from __future__ import annotations

from typing import Any

from titans_pytorch import NeuralMemory
from torch import Tensor, nn

from tests.memory_models.tally import Tally, tapped


class FastWeightsTap(Tally):
    """Counts positions: of those handed over, the whole chunks are stored.

    Args:
        patch: what replaces the methods.
    """

    def __init__(self, patch: Any) -> None:
        super().__init__()
        self._layers: dict[nn.Module, str] = {}
        tapped(NeuralMemory, "store_memories", self._store, patch)
        tapped(NeuralMemory, "retrieve_memories", self._retrieve, patch)

    def knows(self, model: nn.Module) -> None:
        """Take down where a model has its memories."""
        for path, module in model.named_modules():
            if isinstance(module, NeuralMemory):
                self._layers[module] = path

    def _store(self, call: Any, memory: NeuralMemory, seq: Tensor, *args: Any, **more: Any) -> Any:
        layer, begun = self._layers[memory], self.quanta()
        out = call(memory, seq, *args, **more)
        # keys and values may come apart, as two views of the same positions
        rows, length = seq.shape[-3:-1]
        chunk = memory.store_chunk_size
        whole = length // chunk * chunk
        self.spend(2 + whole // chunk)
        if self.counts:
            self.add("capture_calls", layer)
            self.add("states_attempted", layer, rows * length)
            self.add("states_captured", layer, rows * length)
            self.add("states_stored", layer, rows * whole)
            self.add("states_rejected", layer, rows * (length - whole))
            self.add("capture_quanta", layer, self.quanta() - begun)
        return out

    def _retrieve(self, call: Any, memory: NeuralMemory, seq: Tensor, weights: Any) -> Any:
        layer, begun = self._layers[memory], self.quanta()
        out = call(memory, seq, weights)
        self.spend(seq.shape[1])
        if self.counts:
            self.add("total_retrievals", layer)
            self.add("retrieval_quanta", layer, self.quanta() - begun)
        return out
