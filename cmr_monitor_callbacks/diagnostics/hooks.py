"""The hooks of a model: whose they are, in which order they run, what they change and cost."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

_KINDS: Final = {
    "forward_pre": "_forward_pre_hooks",
    "forward": "_forward_hooks",
    "backward_pre": "_backward_pre_hooks",
    "backward": "_backward_hooks",
}
_OURS: Final = "cmr_monitor_callbacks"
_CAPTURING: Final = ("capture", "store_state", "store_entry", "add_entry", "store_memor")


@dataclass(frozen=True)
class HookInfo:
    """One hook of one module.

    Attributes:
        module: path of the module.
        kind: ``forward_pre``, ``forward``, ``backward_pre`` or ``backward``.
        order: its place among those of its kind on that module, from 0.
        id: the number that torch gave it; higher ones were registered later.
        function: its qualified name.
        owner: the package it comes from; ``cmr_monitor_callbacks`` for the monitor's own.
        captures: whether its code speaks of capturing or storing states.
    """

    module: str
    kind: str
    order: int
    id: int
    function: str
    owner: str
    captures: bool

    @property
    def ours(self) -> bool:
        """Whether it is the monitor's own."""
        return self.owner == _OURS


@dataclass
class HookMeasurement:
    """What the hooks did while they were measured.

    Attributes:
        calls: by module, kind and id, how often each ran.
        seconds: likewise, seconds in all.
        changed: hooks that gave back something, and so replaced what they were given.
        wall_seconds: that were measured in all.
    """

    calls: dict[tuple[str, str, int], int] = field(default_factory=dict)
    seconds: dict[tuple[str, str, int], float] = field(default_factory=dict)
    changed: set[tuple[str, str, int]] = field(default_factory=set)
    wall_seconds: float = 0.0


@dataclass(frozen=True)
class HookConflict:
    """Hooks of one module that get in each other's way, or never run.

    Attributes:
        kind: ``capture_twice`` or ``after_compile``.
        module: path of the module.
        functions: their names.
    """

    kind: str
    module: str
    functions: tuple[str, ...]


def list_hooks(model: nn.Module) -> list[HookInfo]:
    """Every hook of every module, in the order in which they run.

    >>> layer = nn.Linear(2, 2)
    >>> handle = layer.register_forward_hook(lambda module, args, out: None)
    >>> [(hook.module, hook.kind, hook.order) for hook in list_hooks(nn.Sequential(layer))]
    [('0', 'forward', 0)]
    """
    return [
        HookInfo(path, kind, order, number, _name(function), _owner(function), _captures(function))
        for path, module in model.named_modules()
        for kind, attribute in _KINDS.items()
        for order, (number, function) in enumerate(getattr(module, attribute).items())
    ]


def hook_conflicts(
    model: nn.Module, known: Collection[int] = (), *, since_compiled: bool = False
) -> list[HookConflict]:
    """Hooks that get in each other's way, or that never run.

    Args:
        model: looked through; nothing of it is run.
        known: ids of hooks that were there before the model was compiled.
        since_compiled: whether ``known`` says which those are.
    """
    found: list[HookConflict] = []
    modules = dict(model.named_modules())
    hooks = [hook for hook in list_hooks(model) if not hook.ours]
    for path in dict.fromkeys(hook.module for hook in hooks):
        here = [hook for hook in hooks if hook.module == path]
        capturing = [hook.function for hook in here if hook.captures and hook.kind == "forward"]
        if len(capturing) > 1:
            found.append(HookConflict("capture_twice", path, tuple(capturing)))
        late = [hook.function for hook in here if since_compiled and hook.id not in known]
        if late and getattr(modules[path], "_compiled_call_impl", None) is not None:
            found.append(HookConflict("after_compile", path, tuple(late)))
    return found


@contextmanager
def measure_hooks(
    model: nn.Module, now: Callable[[], float] = time.perf_counter
) -> Iterator[HookMeasurement]:
    """Time every hook of a model, and see which ones change what they are given.

    Inside, each hook has a stand-in; all are put back on the way out. Not for compiled modules.

    Args:
        model: its hooks are measured while it is called inside.
        now: a clock, in seconds.

    >>> layer = nn.Linear(2, 2)
    >>> handle = layer.register_forward_hook(lambda module, args, out: 2 * out)
    >>> import torch
    >>> with measure_hooks(layer) as measured:
    ...     out = layer(torch.ones(1, 2))
    >>> len(measured.changed), list(measured.calls.values())
    (1, [1])
    """
    measurement = HookMeasurement()
    replaced: list[tuple[Any, int, Any, Any]] = []
    for path, module in model.named_modules():
        for kind, attribute in _KINDS.items():
            registry = getattr(module, attribute)
            for number, function in list(registry.items()):
                stand_in = _timed(function, (path, kind, number), measurement, now)
                replaced.append((registry, number, function, stand_in))
                registry[number] = stand_in
    start = now()
    try:
        yield measurement
    finally:
        measurement.wall_seconds = now() - start
        for registry, number, function, stand_in in replaced:
            if registry.get(number) is stand_in:  # else it was removed meanwhile
                registry[number] = function


def _timed(
    function: Callable[..., Any],
    key: tuple[str, str, int],
    measurement: HookMeasurement,
    now: Callable[[], float],
) -> Callable[..., Any]:
    def measured(*args: Any, **kwargs: Any) -> Any:
        start = now()
        try:
            out = function(*args, **kwargs)
        finally:
            seconds = now() - start
            measurement.calls[key] = measurement.calls.get(key, 0) + 1
            measurement.seconds[key] = measurement.seconds.get(key, 0.0) + seconds
        if out is not None:
            measurement.changed.add(key)
        return out

    return measured


def _plain(function: Any) -> Any:
    """The function itself, under a partial or a bound method."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def _name(function: Any) -> str:
    plain = _plain(function)
    return str(getattr(plain, "__qualname__", None) or type(plain).__qualname__)


def _owner(function: Any) -> str:
    plain = _plain(function)
    module = getattr(plain, "__module__", None) or type(plain).__module__
    return str(module).partition(".")[0]


def _captures(function: Any) -> bool:
    plain = _plain(function)
    code = getattr(plain, "__code__", None) or getattr(type(plain).__call__, "__code__", None)
    names = () if code is None else (*code.co_names, *code.co_freevars)
    return any(word in name for name in names for word in _CAPTURING)
