"""An independent count of what a model's stores do.

The model tells its probes what its store gave back; the tap looks at what goes into the store and
counts by itself, in plain Python.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.models import MemoryModule, Store, accepted, wanted, well_formed

QUANTUM = 2.0**-10
"""Seconds that the tap's clock moves by: exact in binary, so sums of it are exact."""


class Tap:
    """A test double around a model's stores: counts what they are handed, in plain Python.

    Attributes:
        counts: by stage, metric and layer.
        clock: the model's clock; only the tap moves it, so it knows how long everything took.
    """

    def __init__(self, module: MemoryModule) -> None:
        self.module = module
        self.counts: dict[str, dict[str, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
        self.clock = 0.0
        self._kept: dict[int, deque[int]] = {}
        self._changed: dict[int, bool] = {}
        for block in module.blocks:
            store = block.store
            self._kept[store.layer] = deque(maxlen=store.capacity)
            self._changed[store.layer] = True
            block.clock = lambda: self.clock
            store.put = self._put(store, store.put)
            store.read = self._read(store, store.read)

    def of(self, metric: str, stage: str = "train") -> dict[int, float]:
        """A metric by layer; a layer without an event is 0."""
        seen = self.counts[stage][metric]
        return {block.store.layer: float(seen[block.store.layer]) for block in self.module.blocks}

    def entries(self) -> dict[int, float]:
        """What each store holds now."""
        return {layer: float(len(kept)) for layer, kept in self._kept.items()}

    def copy(self) -> dict[str, dict[int, float]]:
        """All of training's counts so far, and what is held now."""
        names = list(self.counts["train"])
        return {**{n: self.of(n) for n in names}, "total_entries": self.entries()}

    def _stage(self) -> str:
        trainer = self.module.trainer
        if trainer.sanity_checking:
            return "sanity"
        names = {"validating": "val", "testing": "test", "predicting": "predict"}
        return next((name for flag, name in names.items() if getattr(trainer, flag)), "train")

    def _put(self, store: Store, put: Callable[..., Any]) -> Callable[..., Any]:
        def counting(states: Tensor, keys: Tensor, handed: Tensor) -> Any:
            given = put(states, keys, handed)
            if not store.live:
                return given
            layer, kept, seen = store.layer, self._kept[store.layer], self.counts[self._stage()]
            took = 3 * QUANTUM
            for key in keys.tolist():
                seen["states_considered"][layer] += 1
                seen["states_attempted"][layer] += wanted(key)
                if not (wanted(key) and well_formed(key)):
                    continue
                seen["states_captured"][layer] += 1
                if not accepted(key, layer):
                    continue
                seen["states_stored"][layer] += 1
                seen["eviction_count"][layer] += len(kept) == kept.maxlen
                kept.append(key)
                self._changed[layer] = True
                took += QUANTUM
            seen["capture_calls"][layer] += 1
            seen["capture_quanta"][layer] += round(took / QUANTUM)
            self.clock += took
            return given

        return counting

    def _read(self, store: Store, read: Callable[[], Any]) -> Callable[[], Any]:
        def counting() -> Any:
            given = read()
            if not store.live:
                return given
            layer, held, seen = (
                store.layer,
                len(self._kept[store.layer]),
                self.counts[self._stage()],
            )
            seen["total_retrievals"][layer] += 1
            seen["entries_retrieved"][layer] += held
            seen["cache_hits"][layer] += held > 0 and not self._changed[layer]
            self._changed[layer] = False
            seen["reconstruction_calls"][layer] += 1
            seen["total_reconstructions"][layer] += held > 0
            took = 1 + seen["total_retrievals"][layer] % 4
            seen["reconstruction_quanta"][layer] += took
            self.clock += took * QUANTUM
            return given

        return counting


COUNTED = (
    "states_considered",
    "states_attempted",
    "states_captured",
    "states_stored",
    "capture_calls",
    "eviction_count",
    "total_retrievals",
    "entries_retrieved",
    "cache_hits",
    "reconstruction_calls",
    "total_reconstructions",
)
"""Counters that the tap counts under the same names."""
