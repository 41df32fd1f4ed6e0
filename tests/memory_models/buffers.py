"""Buffers as people write them: plain Python, and none of them knows of a monitor.

They differ in where entries are, how they leave and what the buffer counts by itself. All take
`store_state` and drop the oldest entry when full; a key that is held already is replaced in place.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Layer = int | None


@dataclass(eq=False)
class Entry:
    """One state that is held."""

    hidden_state: Tensor
    layer_idx: Layer
    key: int
    age: int = 0


@dataclass(eq=False)
class Plain:
    """One state that is held where entries do not say their layer."""

    hidden_state: Tensor
    key: int
    age: int = 0


class ListBuffer:
    """A dict of lists; whatever enters and leaves goes through two methods.

    Args:
        limit: most entries of a layer.
        total: most entries of all layers together.
        layers: layers that have a list from the start.
    """

    stats: dict[str, int]

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        self.layer_buffers: Any = {layer: [] for layer in layers}
        self.max_entries_per_layer = limit
        self.max_total_entries = total
        self._age = 0

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        """Keep a state, unless it is not relevant."""
        if relevance < 0.5:
            return False
        entry = Entry(hidden_state.detach(), layer_idx, key)
        held = self.layer_buffers[layer_idx]
        for place, old in enumerate(held):
            if old.key == key:
                entry.age = old.age
                held[place] = entry
                return True
        self._insert_entry(entry)
        return True

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
        """The newest entries of a layer."""
        return list(self.layer_buffers.get(layer_idx, ()))[-top_k:]

    def retrieve_similar(self, query: Tensor, top_k: int = 3) -> list[Any]:
        """The newest entries of each layer."""
        return [e for layer in self.layer_buffers for e in self.retrieve_by_layer(layer, top_k)]

    def prune_layer(self, layer_idx: int) -> None:
        """Drop the oldest entry of a layer."""
        self._remove_entry(self.layer_buffers[layer_idx][0])

    def load_entries(self, entries: Iterable[Any]) -> None:
        """Take in entries saved elsewhere."""
        for entry in entries:
            self._insert_entry(entry)

    def clear_layer(self, layer_idx: int) -> None:
        """Forget a layer."""
        for entry in list(self.layer_buffers[layer_idx]):
            self._remove_entry(entry)

    def clear_all(self) -> None:
        """Forget everything."""
        for layer in self.layer_buffers:
            self.clear_layer(layer)

    def next_age(self) -> int:
        """The place of the next entry in the order of all."""
        self._age += 1
        return self._age

    def _insert_entry(self, entry: Entry) -> None:
        held = self.layer_buffers[entry.layer_idx]
        while len(held) >= self.max_entries_per_layer:
            self._remove_entry(held[0])
        while sum(map(len, self.layer_buffers.values())) >= self.max_total_entries:
            everything = (e for entries in self.layer_buffers.values() for e in entries)
            self._remove_entry(min(everything, key=lambda e: e.age))
        entry.age = self.next_age()
        held.append(entry)

    def _remove_entry(self, entry: Entry) -> None:
        self.layer_buffers[entry.layer_idx].remove(entry)


class CountingBuffer(ListBuffer):
    """Counts by itself what it took in and dropped; forgetting everything forgets that too."""

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        super().__init__(limit, total, layers)
        self.stats = {"total_insertions": 0, "total_evictions": 0}

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        """Keep a state, unless it is not relevant."""
        stored = super().store_state(hidden_state, layer_idx, relevance, key)
        self.stats["total_insertions"] += stored
        return stored

    def clear_layer(self, layer_idx: int) -> None:
        """Forget a layer; that is no eviction."""
        self.layer_buffers[layer_idx].clear()

    def clear_all(self) -> None:
        """Forget everything."""
        for entries in self.layer_buffers.values():
            entries.clear()
        self.stats = {"total_insertions": 0, "total_evictions": 0}

    def _remove_entry(self, entry: Entry) -> None:
        super()._remove_entry(entry)
        self.stats["total_evictions"] += 1


class SilentBuffer:
    """A dict of deques that drop the oldest by themselves; forgetting everything drops the keys."""

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        self.max_entries_per_layer = limit
        self.layer_buffers: Any = {layer: deque(maxlen=limit) for layer in layers}

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool | None:
        """Keep a state, unless it is not relevant; says nothing where it is kept."""
        if relevance < 0.5:
            return False
        held = self._of(layer_idx)
        for place, old in enumerate(held):
            if old.key == key:
                held[place] = Plain(hidden_state.detach(), key)
                return None
        held.append(Plain(hidden_state.detach(), key))
        return None

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Any]:
        """The newest entries of a layer."""
        return list(self.layer_buffers.get(layer_idx, ()))[-top_k:]

    def retrieve_similar(self, query: Tensor, top_k: int = 3) -> list[Any]:
        """The newest entries of each layer."""
        return [e for layer in self.layer_buffers for e in self.retrieve_by_layer(layer, top_k)]

    def load_entries(self, entries: Iterable[tuple[int, Plain]]) -> None:
        """Take in entries saved elsewhere."""
        for layer, entry in entries:
            self._of(layer).append(entry)

    def clear_layer(self, layer_idx: int) -> None:
        """Forget a layer."""
        self._of(layer_idx).clear()

    def clear_all(self) -> None:
        """Forget everything."""
        self.layer_buffers = {}

    def _of(self, layer: int) -> deque[Any]:
        return self.layer_buffers.setdefault(layer, deque(maxlen=self.max_entries_per_layer))


class GrowingBuffer(ListBuffer):
    """A defaultdict: a layer is there from its first entry on, and goes when it is cleared."""

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        super().__init__(limit, total, ())
        self.layer_buffers = defaultdict(list)

    def clear_layer(self, layer_idx: int) -> None:
        """Forget a layer."""
        self.layer_buffers.pop(layer_idx, None)

    def clear_all(self) -> None:
        """Forget everything."""
        self.layer_buffers.clear()


class FlatBuffer:
    """One list for all layers; each entry says its own."""

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        self.entries: list[Entry] = []
        self.max_total_entries = total

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        """Keep a state, unless it is not relevant."""
        if relevance < 0.5:
            return False
        entry = Entry(hidden_state.detach(), layer_idx, key)
        for place, old in enumerate(self.entries):
            if (old.layer_idx, old.key) == (layer_idx, key):
                self.entries[place] = entry
                return True
        if len(self.entries) >= self.max_total_entries:
            self.entries = self.entries[1:]
        self.entries.append(entry)
        return True

    def retrieve_by_layer(self, layer_idx: int, top_k: int = 3) -> list[Entry]:
        """The newest entries of a layer."""
        return [e for e in self.entries if e.layer_idx == layer_idx][-top_k:]

    def retrieve_similar(self, query: Tensor, top_k: int = 3) -> list[Entry]:
        """The newest entries of each layer."""
        layers = dict.fromkeys(e.layer_idx for e in self.entries)
        return [e for layer in layers for e in self.retrieve_by_layer(layer, top_k)]

    def load_entries(self, entries: Iterable[Entry]) -> None:
        """Take in entries saved elsewhere."""
        self.entries.extend(entries)

    def clear_layer(self, layer_idx: int) -> None:
        """Forget a layer."""
        self.entries = [e for e in self.entries if e.layer_idx != layer_idx]

    def clear_all(self) -> None:
        """Forget everything."""
        self.entries.clear()


class SingleBuffer:
    """One list, and no word of layers anywhere."""

    def __init__(self, limit: int, total: int, layers: Iterable[int] = ()) -> None:
        self.entries: list[Plain] = []
        self.max_total_entries = total

    def store_state(self, hidden_state: Tensor, relevance: float = 1.0, key: int = -1) -> bool:
        """Keep a state, unless it is not relevant."""
        if relevance < 0.5:
            return False
        entry = Plain(hidden_state.detach(), key)
        for place, old in enumerate(self.entries):
            if old.key == key:
                self.entries[place] = entry
                return True
        while len(self.entries) >= self.max_total_entries:
            self.entries.pop(0)
        self.entries.append(entry)
        return True

    def retrieve_similar(self, query: Tensor, top_k: int = 3) -> list[Plain]:
        """The newest entries."""
        return self.entries[-top_k:]

    def load_entries(self, entries: Iterable[Plain]) -> None:
        """Take in entries saved elsewhere."""
        self.entries.extend(entries)

    def clear_all(self) -> None:
        """Forget everything."""
        self.entries = []


class SlotsBuffer:
    """A class with slots: no method of an instance can be replaced."""

    __slots__ = ("_age", "layer_buffers", "max_entries_per_layer", "max_total_entries")
    layer_buffers: Any
    max_entries_per_layer: int
    max_total_entries: int
    _age: int

    __init__ = ListBuffer.__init__
    store_state = ListBuffer.store_state
    retrieve_by_layer = ListBuffer.retrieve_by_layer
    retrieve_similar = ListBuffer.retrieve_similar
    prune_layer = ListBuffer.prune_layer
    load_entries = ListBuffer.load_entries
    clear_layer = ListBuffer.clear_layer
    clear_all = ListBuffer.clear_all
    next_age = ListBuffer.next_age
    _insert_entry = ListBuffer._insert_entry
    _remove_entry = ListBuffer._remove_entry


class CountingSlotsBuffer:
    """The same, with counters of its own."""

    __slots__ = ("_age", "layer_buffers", "max_entries_per_layer", "max_total_entries", "stats")
    layer_buffers: Any
    max_entries_per_layer: int
    max_total_entries: int
    stats: dict[str, int]
    _age: int

    retrieve_by_layer = ListBuffer.retrieve_by_layer
    retrieve_similar = ListBuffer.retrieve_similar
    prune_layer = ListBuffer.prune_layer
    load_entries = ListBuffer.load_entries
    next_age = ListBuffer.next_age
    _insert_entry = ListBuffer._insert_entry
    clear_layer = CountingBuffer.clear_layer
    clear_all = CountingBuffer.clear_all

    def __init__(self, limit: int, total: int, layers: Iterable[int]) -> None:
        ListBuffer.__init__(self, limit, total, layers)  # type: ignore[arg-type]
        self.stats = {"total_insertions": 0, "total_evictions": 0}

    def store_state(
        self, hidden_state: Tensor, layer_idx: int, relevance: float = 1.0, key: int = -1
    ) -> bool:
        """Keep a state, unless it is not relevant."""
        stored = ListBuffer.store_state(self, hidden_state, layer_idx, relevance, key)  # type: ignore[arg-type]
        self.stats["total_insertions"] += stored
        return stored

    def _remove_entry(self, entry: Entry) -> None:
        ListBuffer._remove_entry(self, entry)  # type: ignore[arg-type]
        self.stats["total_evictions"] += 1


@dataclass(frozen=True)
class Kind:
    """What a test must know of a kind of buffer.

    Attributes:
        make: the class.
        home: attribute that holds the entries.
        layered: whether it knows of layers.
        by_layer, by_total: which limits it keeps.
        methods: whether whatever enters and leaves goes through ``_insert_entry`` and
            ``_remove_entry``, other than in a clear.
        counts: whether it has ``stats``.
        tells_layer: whether its entries say their layer.
    """

    make: Any
    home: str = "layer_buffers"
    layered: bool = True
    by_layer: bool = True
    by_total: bool = True
    methods: bool = True
    counts: bool = False
    tells_layer: bool = True

    def entry(self, state: Tensor, layer: Layer, key: int) -> Any:
        """An entry that this kind of buffer may hold."""
        return Entry(state, layer, key) if self.tells_layer else Plain(state, key)

    def held(self, buffer: Any, layer: Layer) -> list[Any]:
        """The entries of a layer; looking makes no key."""
        if self.home == "layer_buffers":
            return list(buffer.layer_buffers.get(layer, ()))
        if self.layered:
            return [e for e in buffer.entries if e.layer_idx == layer]
        return list(buffer.entries)

    def put(self, buffer: Any, layer: Layer, entries: list[Any]) -> None:
        """Assign a layer's entries from outside, by no method of the buffer."""
        if self.home == "layer_buffers":
            limit = buffer.max_entries_per_layer
            fresh: Any = entries if self.methods else deque(entries, maxlen=limit)
            buffer.layer_buffers[layer] = fresh
        elif self.layered:
            others = [e for e in buffer.entries if e.layer_idx != layer]
            buffer.entries = [*others, *entries]
        else:
            buffer.entries = entries

    def wipe(self, buffer: Any, layer: Layer) -> None:
        """Empty a layer's container from outside, in place."""
        if self.home == "layer_buffers":
            if layer in buffer.layer_buffers:
                buffer.layer_buffers[layer].clear()
        else:
            buffer.entries[:] = [e for e in buffer.entries if self.layered and e.layer_idx != layer]

    def append(self, buffer: Any, layer: Layer, entry: Any) -> None:
        """Append to a layer's container from outside."""
        if self.home != "layer_buffers":
            buffer.entries.append(entry)
            return
        if layer not in buffer.layer_buffers:
            self.put(buffer, layer, [])
        buffer.layer_buffers[layer].append(entry)


KINDS: dict[str, Kind] = {
    "lists": Kind(ListBuffer),
    "counting": Kind(CountingBuffer, counts=True),
    "deques": Kind(SilentBuffer, by_total=False, methods=False, tells_layer=False),
    "defaultdict": Kind(GrowingBuffer),
    "flat": Kind(FlatBuffer, "entries", by_layer=False, methods=False),
    "single": Kind(
        SingleBuffer, "entries", layered=False, by_layer=False, methods=False, tells_layer=False
    ),
    "slots": Kind(SlotsBuffer),
    "counting slots": Kind(CountingSlotsBuffer, counts=True),
}
SLOTS: tuple[str, ...] = ("slots", "counting slots")
