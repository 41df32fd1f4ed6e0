"""Tensors that act as memories: a queue with a pointer, or the states of earlier segments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch

from cmr_monitor_callbacks.probes.holding import Holding
from cmr_monitor_callbacks.probes.reading import positions
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import BaseWatch, Ways

_NAME: Final = re.compile(r"_*(mems?|memor(y|ies)|queue|bank|fifo)(_(bank|queue|states|keys|k))?$")
_COUNT: Final = ("count", "filled", "num_entries", "n_entries", "size", "length")
_POINTER: Final = ("ptr", "pointer", "position", "index", "cursor")


class FifoWatch(BaseWatch):
    """What a tensor holds; what is written to it is not seen.

    How much of a preallocated tensor is in use is told by a count beside it, or by a pointer, which
    says so until it has come round once. Of a list of tensors each state of a segment is an entry.
    """

    counts_moves = False
    """What is written is not seen."""

    def __init__(self, part: Part, name: str) -> None:
        super().__init__(part)
        self._name = name
        self._last = 0
        self._full = False

    @property
    def one_layer(self) -> bool:
        """See `BaseWatch.one_layer`."""
        return not self.layered

    def install(self, ways: Ways) -> None:
        """Nothing to install: it is read at the end of a window."""
        self.source("buffer", "polled", self._name)
        self.unknown = [f"what is stored in and dropped from {self._name}: a tensor is written to"]

    def holds(self) -> dict[Any, int]:
        """Entries held now, under this memory's layer."""
        return {layer: holding.entries for layer, holding in self.holdings().items()}

    def holdings(self) -> dict[Any, Holding]:
        """Entries, capacity and bytes."""
        own = _state(self._owner()) if self.alive else {}
        held = own.get(self._name)
        if isinstance(held, (list, tuple)):
            tensors = [item for item in held if isinstance(item, torch.Tensor)]
            count = sum(positions(item) for item in tensors)
            size = sum(item.nelement() * item.element_size() for item in tensors)
            return {self.unnamed_layer(): Holding(count, None, size)}
        if not isinstance(held, torch.Tensor) or held.ndim < 2:
            return {}
        capacity = held.shape[0]
        count = self._used(own, capacity)
        one = held[:1].nelement() * held.element_size() if capacity else 0
        return {self.unnamed_layer(): Holding(count, capacity, count * one)}

    def _used(self, own: Mapping[str, Any], capacity: int) -> int:
        count = _number(own, self._name, _COUNT)
        if count is not None:
            return min(count, capacity)
        pointer = _number(own, self._name, _POINTER)
        if pointer is None:
            return capacity
        self._full = self._full or pointer < self._last or pointer >= capacity
        self._last = pointer
        return capacity if self._full else pointer


def _state(module: Any) -> dict[str, Any]:
    """What a module holds beside its parameters: attributes and registered buffers."""
    own = attributes(module)
    return {**own, **(own.get("_buffers") or {})}


def _number(own: Mapping[str, Any], name: str, kinds: tuple[str, ...]) -> int | None:
    """A whole number beside a tensor, where the host has it."""
    for kind in kinds:
        for key in (f"{name}_{kind}", kind, f"_{kind}"):
            value = own.get(key)
            if type(value) is int:
                return value
            if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
                continue
            if value.numel() == 1 and not value.is_floating_point():
                return int(value)
    return None


def fifo(part: Part) -> FifoWatch | None:
    """Recognise a module that keeps states in a tensor, or in a list of them."""
    if not part.is_module:
        return None
    for name, value in _state(part.value).items():
        if not _NAME.match(name) or isinstance(value, torch.nn.Parameter):
            continue
        is_list = type(value) in (list, tuple) and 0 < len(value) <= 64
        tensors = list(value) if is_list else [value]
        if all(isinstance(item, torch.Tensor) and item.ndim >= 2 for item in tensors):
            return FifoWatch(part, name)
    return None
