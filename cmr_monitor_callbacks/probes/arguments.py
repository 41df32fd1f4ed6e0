"""Memories that no attribute holds: objects that a forward is given."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cmr_monitor_callbacks.probes.reading import MEMORY_NAME, parameters
from cmr_monitor_callbacks.probes.report import compiling
from cmr_monitor_callbacks.probes.survey import plain_path, survey
from cmr_monitor_callbacks.probes.watches.base import Ways, guarded, method
from cmr_monitor_callbacks.probes.wrapping import hook

Take = Callable[[Any, str, bool], bool]


_LOOKED_AT = 64
Noted = weakref.ref[Any] | list[weakref.ref[Any]] | None
_PATIENCE = 8
"""Looks at a parameter that bring nothing, after which it is left alone."""


class ArgumentWatch:
    """Looks at the memory arguments of the forwards that have any.

    Args:
        take: told of each object, the path of the module that is given it, and whether it is given
            itself, not in a list; says whether it knows it.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self.fruitless: list[Any] = []
        """Handles of hooks that brought nothing, to be removed between two forwards."""

    def install(self, model: nn.Module, ways: Ways) -> None:
        """Hook every module whose forward has a parameter that is called like a memory."""
        paths = {id(part.value): part.path for part in survey(model) if part.is_module}
        for name, module in model.named_modules():
            names = [p.name for p in parameters(method(module, "forward"))]
            chosen = [(i, p) for i, p in enumerate(names) if MEMORY_NAME.search(p)]
            if chosen and not type(module).__module__.startswith("torch."):
                self._hook(ways, module, paths.get(id(module), plain_path(name)), chosen)

    def _hook(
        self, ways: Ways, module: nn.Module, path: str, chosen: list[tuple[int, str]]
    ) -> None:
        last: dict[str, Noted] = {}
        looks = [0]

        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for position, name in chosen:
                value = kwargs.get(name)
                if value is None and position < len(args):
                    value = args[position]
                if value is None or _still(last.get(name), value):
                    continue
                last[name] = _noted(value)
                looks[0] += 1
                if self._offer(value, path, name):
                    looks[0] = 0
            if looks[0] >= _PATIENCE:
                self.fruitless.append(handle)

        safely = guarded(ways.report, f"the arguments of {path}", look)

        def before(_: Any, module: nn.Module, args: Any, kwargs: Any) -> None:
            if looks[0] < _PATIENCE and not compiling():
                safely(args, kwargs)

        handle = module.register_forward_pre_hook(hook(before), with_kwargs=True)
        ways.handles.append(handle)

    def remove_fruitless(self) -> None:
        """Let go of what brought nothing."""
        for handle in self.fruitless:
            handle.remove()
        self.fruitless.clear()

    def _offer(self, value: Any, path: str, name: str) -> bool:
        if isinstance(value, (list, tuple)):
            inner = f"{path}.{name}" if path else name
            return any(
                [
                    self._take(item, f"{inner}.{i}", False)
                    for i, item in enumerate(value[:_LOOKED_AT])
                    if not isinstance(item, _PLAIN)
                ]
            )
        return not isinstance(value, (*_PLAIN, Mapping)) and self._take(value, path, True)


def _noted(value: Any) -> Noted:
    """What tells a value again without keeping it: an identity may be another's soon."""
    try:
        if isinstance(value, (list, tuple)):
            return [weakref.ref(item) for item in value[:_LOOKED_AT]]
        return weakref.ref(value)
    except TypeError:
        return None


def _still(noted: Noted, value: Any) -> bool:
    if isinstance(noted, list):
        same = isinstance(value, (list, tuple)) and len(noted) == len(value[:_LOOKED_AT])
        return same and all(ref() is item for ref, item in zip(noted, value, strict=False))
    return noted is not None and noted() is value


_PLAIN = (torch.Tensor, int, float, str, type(None))
