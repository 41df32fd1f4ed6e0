"""Where a buffer keeps its entries, and how many may lie there: read anew each time."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

import torch

from cmr_monitor_callbacks.probes.reading import UNKNOWN, bytes_of, held_layer, size_of
from cmr_monitor_callbacks.probes.survey import attributes

_NAME: Final = re.compile(
    r"layer|mem|buffer|entr|stor|bank|slot|queue|state|cache|item|data|shelf", re.IGNORECASE
)
_NOT: Final = re.compile(
    r"stats|index|config|hook|usage|pattern|history|times|count|score|metric|access|hits|param",
    re.IGNORECASE,
)
_TOTAL: Final = (
    "max_total_entries",
    "max_entries",
    "capacity",
    "max_size",
    "maxsize",
    "max_memories",
    "buffer_size",
    "memory_size",
    "size_limit",
    "max_len",
    "maxlen",
)
_EACH: Final = (
    "max_entries_per_layer",
    "capacity_per_layer",
    "per_layer_capacity",
    "layer_capacity",
)


class Shelf:
    """The container of a buffer's entries.

    Args:
        owner: the buffer.
        name: the attribute that holds the container.
        by_layer: whether it is a mapping or list of containers by layer.
        layered: whether the buffer's methods name layers.
        layer: of a container that knows no layers; told when asked.
    """

    def __init__(
        self,
        owner: Callable[[], Any],
        name: str,
        by_layer: bool,
        layered: bool,
        layer: Callable[[], Hashable | None],
    ) -> None:
        self._owner = owner
        self.name = name
        self.by_layer = by_layer
        self._layered = layered
        self._layer = layer

    def lengths(self) -> dict[Any, int]:
        """Entries held now, by layer."""
        held = attributes(self._owner()).get(self.name)
        if not self.by_layer:
            return self._of_flat(held)
        if isinstance(held, Mapping):
            return {layer: len(entries) for layer, entries in list(held.items())}
        return {i: len(entries) for i, entries in enumerate(held or ())}

    def _of_flat(self, held: Any) -> dict[Any, int]:
        if not held and not isinstance(held, torch.Tensor):
            return {} if held is None or self._layered else {self._layer(): 0}
        if isinstance(held, torch.Tensor):
            return {self._layer(): held.shape[0]}
        first = next(iter(held.values() if isinstance(held, Mapping) else held))
        if held_layer(first) is UNKNOWN:
            return {self._layer(): len(held)}
        entries = held.values() if isinstance(held, Mapping) else held
        return dict(Counter(held_layer(entry) for entry in list(entries)))

    def entries(self) -> dict[Any, Sequence[Any]]:
        """The entries themselves, by layer; the lists are copies."""
        held = attributes(self._owner()).get(self.name)
        if held is None:
            return {}
        if isinstance(held, torch.Tensor):
            return {self._layer(): list(held)}
        if self.by_layer:
            pairs = held.items() if isinstance(held, Mapping) else enumerate(held)
            return {layer: _listed(entries) for layer, entries in list(pairs)}
        found: dict[Any, list[Any]] = {}
        for entry in _listed(held):
            layer = held_layer(entry)
            found.setdefault(self._layer() if layer is UNKNOWN else layer, []).append(entry)
        return dict(found)

    def empty(self) -> None:
        """Drop every entry, past the buffer's methods; for a copy that nobody trains."""
        held = attributes(self._owner()).get(self.name)
        if self.by_layer and held:
            for entries in held.values() if isinstance(held, Mapping) else held:
                entries.clear()
        elif isinstance(held, (list, deque, dict)):
            held.clear()

    def _container(self, layer: Any) -> Any:
        held = attributes(self._owner()).get(self.name)
        if not self.by_layer:
            return held
        if isinstance(held, Mapping):
            return held.get(layer)
        if held is None or not isinstance(layer, int) or not 0 <= layer < len(held):
            return None
        return held[layer]

    def ends(self, layer: Any) -> tuple[Any, ...]:
        """The first and the last entry of a layer's container, and how many there are."""
        entries = self._container(layer)
        if not isinstance(entries, (list, deque)) or not entries:
            return ()
        return entries[0], entries[-1], len(entries)

    def grew(self, layer: Any, before: tuple[Any, ...]) -> bool:
        """Whether a store put its entry at an end, rather than in the place of another.

        Args:
            layer: that the store was about.
            before: the `ends` before.
        """
        entries = self._container(layer)
        if not isinstance(entries, (list, deque)) or not before or len(entries) < before[2]:
            return True
        if len(entries) > before[2]:
            return True
        first, last, count = before
        each, total = self.capacities()
        limit = each.get(layer) if isinstance(each, dict) else each
        limit = total if limit is None else limit
        if limit is not None and count < limit:
            return False  # there was room
        if count == 1:  # what was there made room
            return True
        return (entries[-1] is not last and entries[-2] is last) or (
            entries[0] is not first and entries[1] is first
        )

    def sizes(self) -> dict[Any, int | None]:
        """Bytes held now, by layer."""
        held = attributes(self._owner()).get(self.name)
        if held is None:
            return {}
        if self.by_layer:
            pairs = held.items() if isinstance(held, Mapping) else enumerate(held)
            return {layer: bytes_of(entries) for layer, entries in list(pairs)}
        lengths = self._of_flat(held)
        if len(lengths) <= 1:
            return dict.fromkeys(lengths, bytes_of(held))
        sizes: dict[Any, int | None] = dict.fromkeys(lengths, 0)
        for entry in list(held.values() if isinstance(held, Mapping) else held):
            sizes[held_layer(entry)] += size_of(entry) or 0  # type: ignore[operator]
        return sizes

    def capacities(self) -> tuple[dict[Any, int] | int | None, int | None]:
        """The limit of each layer (one for all, or by layer), and that of the whole."""
        own = attributes(self._owner())
        held = own.get(self.name)
        each: Any = next((own[name] for name in _EACH if name in own), None)
        total = next((own[name] for name in _TOTAL if type(own.get(name)) is int), None)
        if each is None and self.by_layer and held:
            items = held.values() if isinstance(held, Mapping) else held
            limits = {getattr(item, "maxlen", None) for item in items}
            each = limits.pop() if len(limits) == 1 else None
        if not self.by_layer:
            total = total if not isinstance(held, deque) or total is not None else held.maxlen
        return each, total


def _listed(entries: Any) -> list[Any]:
    return list(entries.values() if isinstance(entries, Mapping) else entries)


def find_shelf(
    owner: Callable[[], Any], layer: Callable[[], Hashable | None], layered: bool
) -> Shelf | None:
    """The attribute that holds a buffer's entries, the likeliest of several."""
    own = attributes(owner())
    named = [name for name in own if _NAME.search(name) and not _NOT.search(name)]
    named.sort(key=lambda name: (name != "layer_buffers", "layer" not in name))
    for name in named:
        if _is_by_layer(own[name], name, layered):
            return Shelf(owner, name, True, layered, layer)
    for name in named:
        if isinstance(own[name], (list, deque, dict)):
            return Shelf(owner, name, False, layered, layer)
    return None


def _is_by_layer(value: Any, name: str, layered: bool) -> bool:
    if isinstance(value, Mapping):
        if value:
            return all(isinstance(item, (list, deque, dict)) for item in value.values())
        return "layer" in name or layered
    if isinstance(value, (list, tuple)) and value and layered:
        return all(isinstance(item, (list, deque)) for item in value)
    return False
