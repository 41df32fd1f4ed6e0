"""Memories that no attribute holds: objects that a forward is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cmr_monitor_callbacks.probes.reading import MEMORY_NAME, parameters
from cmr_monitor_callbacks.probes.survey import plain_path
from cmr_monitor_callbacks.probes.watches.base import Ways, guarded, method

Take = Callable[[Any, str, bool], None]


class ArgumentWatch:
    """Looks at the memory arguments of the forwards that have any.

    Args:
        take: told of each object, the path of the module that is given it, and whether it is given
            itself, not in a list.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._seen: dict[tuple[int, str], int] = {}

    def install(self, model: nn.Module, ways: Ways) -> None:
        """Hook every module whose forward has a parameter that is called like a memory."""
        for name, module in model.named_modules():
            names = [p.name for p in parameters(method(module, "forward"))]
            chosen = [(i, p) for i, p in enumerate(names) if MEMORY_NAME.search(p)]
            if chosen and not type(module).__module__.startswith("torch."):
                path = plain_path(name)
                look = guarded(ways.report, f"the arguments of {path}", self._looker(path, chosen))
                ways.handles.append(module.register_forward_pre_hook(_hook(look), with_kwargs=True))

    def _looker(self, path: str, chosen: list[tuple[int, str]]) -> Callable[..., None]:
        def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for position, name in chosen:
                value = kwargs.get(name)
                if value is None and position < len(args):
                    value = args[position]
                if value is None or isinstance(value, torch.Tensor):
                    continue
                if self._seen.get((id(value), path)) == 1:
                    continue
                self._seen[id(value), path] = 1
                if len(self._seen) > 1000:  # objects made anew for every step
                    self._seen.clear()
                self._offer(value, path, name)

        return look

    def _offer(self, value: Any, path: str, name: str) -> None:
        if isinstance(value, (list, tuple)):
            for i, item in enumerate(value[:64]):
                if not isinstance(item, (torch.Tensor, int, float, str, type(None))):
                    self._take(item, f"{path}.{name}.{i}" if path else f"{name}.{i}", False)
        elif not isinstance(value, (int, float, str, Mapping)):
            self._take(value, path, True)


def _hook(look: Callable[..., None]) -> Callable[..., None]:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling():
            look(args, kwargs)

    return before
