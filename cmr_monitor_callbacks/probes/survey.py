"""The survey: every part of a model that may be a memory, and where it is.

Half of the memories in the field are no modules: dicts, lists, deques, plain objects that a module
holds. So the survey looks at the attributes of modules and of what they hold. It reads instance
dictionaries and slots alone: no property, ``__getattr__`` or method of the model ever runs.
"""

from __future__ import annotations

import functools
import re
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.probes.wrapping import Wrapped

_LOOKED_AT: Final = 64
"""Items of a container that are looked at; a longer one is data, not parts."""
_DEEPEST: Final = 5
_TORCH_OWN: Final = frozenset(vars(nn.Module()))
_FOREIGN: Final = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|torch|torchmetrics|numpy|logging|threading|"
    r"concurrent|multiprocessing|asyncio|tensorboard|omegaconf|hydra|builtins|collections|pathlib|"
    r"cmr_monitor_callbacks|datetime|decimal|random|re|_io|io|weakref|functools|types|typing)(\.|$)"
)
"""Whose objects are nobody's memory; containers and modules are looked into all the same."""
_WRAPPERS: Final = re.compile(
    r"(^|\.)(_fsdp_wrapped_module|_forward_module|_orig_mod|_checkpoint_wrapped_module)(?=\.|$)"
)
_AROUND: Final = frozenset({"DistributedDataParallel", "DataParallel"})
"""Wrappers that hold a model as ``module``, a name that a model may have for a part of its own."""


Link = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Part:
    """An object of the model.

    Attributes:
        value: the object.
        path: where it is within the model, as a person would write it, wrappers left out.
        links: how it is reached from the module that holds it: dictionary or list, key, value.
        offers: names of the methods that it or its class has.
    """

    value: Any
    path: str
    links: tuple[Link, ...] = field(repr=False, default=())
    offers: frozenset[str] = field(repr=False, default=frozenset())

    @property
    def is_module(self) -> bool:
        """Whether it is a torch module, by its type: its own word of its class may be anything."""
        return issubclass(type(self.value), nn.Module)

    @property
    def still_there(self) -> bool:
        """Whether its place still holds it; cheap enough for every step."""
        try:
            return all(holder[key] is value for holder, key, value in self.links)
        except (KeyError, IndexError):
            return False


def survey(model: Any) -> Iterator[Part]:
    """Every part of a model once, outer ones first; the model itself has the path ''."""
    seen: set[int] = set()
    yield from _visit(model, "", (), 0, seen)


def part_of(value: Any, path: str) -> Part:
    """An object that nothing of the model holds, such as an argument of a forward."""
    return Part(value, path, offers=offers(value))


def offers(value: Any) -> frozenset[str]:
    """Names of the methods that an object has, of its class or of its own; nothing is run."""
    own = {name for name, item in _own(value).items() if issubclass(type(item), _CALLABLES)}
    cls: Any = type(value)
    return _methods(cls) | own if own else _methods(cls)


def attributes(value: Any) -> dict[str, Any]:
    """What an object itself holds: its dictionary and its slots; no property is run."""
    cls: Any = type(value)
    slots = _slots(cls)
    if not slots:
        return _own(value)
    out = dict(_own(value))
    for name, slot in slots:
        try:
            out[name] = slot.__get__(value)
        except AttributeError:  # never assigned
            continue
    return out


def is_foreign(kind: type) -> bool:
    """Whether it is a type of Python or of a library, whose objects are not looked into."""
    return bool(_FOREIGN.match(str(kind.__module__))) and kind is not types.SimpleNamespace


def plain_path(path: str) -> str:
    """A path without what FSDP, torch.compile and checkpoint wrappers put into it.

    >>> plain_path("_forward_module._fsdp_wrapped_module.net._orig_mod.buffer")
    'net.buffer'
    """
    return _WRAPPERS.sub("", path).lstrip(".")


def _own(value: Any) -> dict[str, Any]:
    try:
        found = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=4096)
def _methods(cls: type) -> frozenset[str]:
    found: set[str] = set()
    for base in cls.__mro__[:-1]:
        if base is nn.Module:
            break
        found.update(
            name
            for name, item in vars(base).items()
            if isinstance(item, (types.FunctionType, classmethod, staticmethod))
        )
    return frozenset(found)


@lru_cache(maxsize=4096)
def _slots(cls: type) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, item)
        for base in cls.__mro__
        for name, item in vars(base).items()
        if isinstance(item, types.MemberDescriptorType) and not name.startswith("__")
    )


def _visit(
    value: Any, path: str, links: tuple[Link, ...], depth: int, seen: set[int]
) -> Iterator[Part]:
    kind = type(value)  # an object's own word of its class may be anything
    if issubclass(kind, _LEAVES) or id(value) in seen:
        return
    seen.add(id(value))
    if issubclass(kind, nn.Module):
        yield Part(value, plain_path(path), links, offers(value))
        yield from _visit_module(value, path, seen)
    elif issubclass(kind, (list, tuple, deque, dict)):
        if kind.__module__ not in ("builtins", "collections"):
            yield Part(value, plain_path(path), links, offers(value))
        if depth < _DEEPEST:
            yield from _visit_items(value, path, links, depth + 1, seen)
    elif not is_foreign(kind):
        yield Part(value, plain_path(path), links, offers(value))
        if depth < _DEEPEST:
            own = _own(value)
            for name, item in attributes(value).items():
                to = (*links, (own, name, item)) if name in own else links
                yield from _visit(item, _joined(path, name), to, depth + 1, seen)


def _visit_module(module: nn.Module, path: str, seen: set[int]) -> Iterator[Part]:
    own = _own(module)
    for name, item in list(own.items()):
        if name not in _TORCH_OWN and not name.startswith(("_trainer", "_fabric", "_log")):
            yield from _visit(item, _joined(path, name), ((own, name, item),), 1, seen)
    wraps = type(module).__name__ in _AROUND
    for name, child in list(own.get("_modules", {}).items()):
        if child is not None:
            inner = path if wraps and name == "module" else _joined(path, name)
            yield from _visit(child, inner, (), 0, seen)


def _visit_items(
    value: Any, path: str, links: tuple[Link, ...], depth: int, seen: set[int]
) -> Iterator[Part]:
    if len(value) > _LOOKED_AT:
        return
    is_dict = issubclass(type(value), dict)
    for key, item in list(dict.items(value) if is_dict else enumerate(value)):
        to = (*links, (value, key, item)) if is_dict or type(value) is list else links
        yield from _visit(item, _joined(path, str(key)), to, depth, seen)


_LEAVES: Final = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.Tensor,
    torch.dtype,
    torch.device,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    types.GeneratorType,
)
_CALLABLES: Final = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    Wrapped,
)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
