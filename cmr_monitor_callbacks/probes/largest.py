"""Which tensors a model's memory holds, by name and size; nothing is run, copied or allocated."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from torch import Tensor, nn

from cmr_monitor_callbacks.probes.survey import attributes, is_foreign
from cmr_monitor_callbacks.probes.watches.base import Watch
from cmr_monitor_callbacks.probes.watches.buffer import BufferWatch

_DEEPEST: Final = 6
_LOOKED_AT: Final = 200_000
"""Most tensors that are looked at."""
_NAMED: Final = 64
"""A mapping of more than so many items is one group."""
_MIB: Final = 2**20


@dataclass
class HeldTensors:
    """Tensors that lie at one place: one, or the entries of a list.

    Attributes:
        name: where they are.
        count: how many.
        nbytes: of all of them.
        shape: of the largest.
        dtype: likewise.
        device: likewise.
    """

    name: str
    count: int = 0
    nbytes: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = ""
    device: str = ""
    _largest: int = -1

    def add(self, tensor: Tensor) -> None:
        """One more tensor."""
        size = tensor.nelement() * tensor.element_size()
        self.count += 1
        self.nbytes += size
        if size > self._largest:
            self._largest, self.shape = size, tuple(tensor.shape)
            self.dtype = str(tensor.dtype).removeprefix("torch.")
            self.device = str(tensor.device)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape)) or "one number"
        many = "" if self.count == 1 else f"{self.count:,} tensors, the largest "
        return f"{self.name} ({many}{shape} {self.dtype}, {self.nbytes / _MIB:.1f} MiB)"


def memory_tensors(
    watched: Iterable[Watch], holders: Iterable[tuple[str, nn.Module]] = ()
) -> list[HeldTensors]:
    """What a memory holds, the largest first.

    Args:
        watched: buffers with their entries by layer; of other objects their state, parameters too.
        holders: path and module of what holds a probe: its state without the parameters.

    >>> block = nn.Module()
    >>> block.bank = [nn.Linear(256, 1024).weight.detach() for _ in range(2)]
    >>> print(memory_tensors([], [("blocks.4", block)])[0])
    blocks.4.bank (2 tensors, the largest 1024×256 float32, 2.0 MiB)
    """
    groups: dict[str, HeldTensors] = {}
    seen: set[int] = set()
    for name, tensor in islice(_all(list(watched), holders, seen), _LOOKED_AT):
        groups.setdefault(name, HeldTensors(name)).add(tensor)
    return sorted(groups.values(), key=lambda group: -group.nbytes)


def _all(
    watched: list[Watch], holders: Iterable[tuple[str, nn.Module]], seen: set[int]
) -> Iterator[tuple[str, Tensor]]:
    for watch in watched:
        if isinstance(watch, BufferWatch) and watch.alive:
            for layer, entries in watch.shelf.entries().items():
                for entry in entries:
                    for _, tensor in _tensors(entry, "", 0, seen, parameters=True):
                        yield _of_layer(watch.path, layer), tensor
    for watch in watched:
        owner = getattr(watch, "_owner", None)
        if owner is not None:
            yield from _tensors(owner(), watch.path, 0, seen, parameters=True)
    for path, module in holders:
        yield from _tensors(module, path, 0, seen, parameters=False)


def _of_layer(path: str, layer: Hashable | None) -> str:
    return f"{path or 'the buffer'}, layer {layer}" if layer is not None else path or "the buffer"


def _tensors(
    value: Any, name: str, depth: int, seen: set[int], *, parameters: bool
) -> Iterator[tuple[str, Tensor]]:
    kind = type(value)
    if issubclass(kind, Tensor):
        if id(value) not in seen and (parameters or not issubclass(kind, nn.Parameter)):
            seen.add(id(value))
            yield name or "a tensor", value
        return
    if depth > _DEEPEST or issubclass(kind, (str, bytes, int, float, type(None), type)):
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for part, item in _items(value, kind):
        inner = f"{name}.{part}" if name and part else name or part
        yield from _tensors(item, inner, depth + 1, seen, parameters=parameters)


def _items(value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """What an object holds, with its name there; '' where there are too many to tell apart."""
    if issubclass(kind, (list, tuple, set, deque)):
        for item in list(islice(value, _LOOKED_AT)):
            yield "", item
    elif issubclass(kind, Mapping):
        for key, item in list(islice(value.items(), _LOOKED_AT)):
            yield str(key) if len(value) <= _NAMED else "", item
    elif issubclass(kind, nn.Module) or not is_foreign(kind):
        for part, item in list(attributes(value).items()):
            if part in ("_parameters", "_buffers", "_modules") and isinstance(item, dict):
                yield from list(item.items())
            elif not part.startswith(("_trainer", "_fabric", "_forward_", "_backward_", "__")):
                yield part, item
