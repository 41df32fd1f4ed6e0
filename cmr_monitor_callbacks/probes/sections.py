"""Sections of a profile: what begins and ends while one is on, and costs nothing while none is.

Nothing of this is on the way of a call outside of a profile. When one begins, the functions that
stand in for methods are exchanged for ones that open a section around them, modules get a pair of
hooks, and probes a maker of timers; when it ends, all of it is taken out again. The model's own
dictionaries stay as they are, so compiled code need not be compiled anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn

from cmr_monitor_callbacks.probes.explicit import CMRProbe
from cmr_monitor_callbacks.probes.reading import UNKNOWN
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.watches.base import resolved
from cmr_monitor_callbacks.probes.wrapping import Call, LayerOf, Wrapped, hook

Open = Callable[[str, Hashable | None, bool], AbstractContextManager[Any]]
"""Opens a section: component, layer, and whether it is a recompute."""


class _Opened(threading.local):
    """The sections that hooks of modules opened in this thread."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module, AbstractContextManager[Any]]] = []

    def __reduce__(self) -> tuple[type[_Opened], tuple[()]]:
        return _Opened, ()  # in another process none is open


class Sections:
    """Puts sections into what a monitor listens to, and takes them out."""

    def __init__(self) -> None:
        self._open: Open | None = None
        self._exchanged: list[tuple[type[Wrapped], Call, Call]] = []
        self._compiled: list[tuple[nn.Module, Call, Call]] = []
        self._handles: list[Any] = []
        self._probes: list[CMRProbe] = []
        self._hooked: set[int] = set()
        self._opened = _Opened()

    def enter(self, open_section: Open) -> None:
        """Begin; what is added from now on has sections."""
        self.leave()
        self._open = open_section

    def leave(self) -> None:
        """Take everything out."""
        for cls, ours, before in self._exchanged:
            if vars(cls).get("__call__") is ours:  # else the method was put back meanwhile
                cls.__call__ = before  # type: ignore[method-assign]
        for module, ours, before in self._compiled:
            if vars(module).get("_compiled_call_impl") is ours:
                module._compiled_call_impl = before
        for handle in self._handles:
            handle.remove()
        for probe in self._probes:
            probe.show_sections(None)
        stack = self._opened.stack
        while stack:  # within a forward: it goes on without
            stack.pop()[1].__exit__(None, None, None)
        self._exchanged, self._compiled, self._handles, self._probes = [], [], [], []
        self._hooked.clear()
        self._open = None

    def add_wraps(self, wraps: Iterable[tuple[type[Wrapped], tuple[str, LayerOf]]]) -> None:
        """Have calls of replaced methods be sections."""
        if self._open is None:
            return
        for cls, (component, layer) in list(wraps):
            before = vars(cls)["__call__"]
            ours = _around(before, partial(self._section, component, layer))
            cls.__call__ = ours  # type: ignore[method-assign]
            self._exchanged.append((cls, ours, before))

    def add_probes(self, probes: Iterable[CMRProbe]) -> None:
        """Have the timers of probes be sections."""
        if self._open is None:
            return
        for probe in probes:
            probe.show_sections(partial(self._timed, probe.layer))
            self._probes.append(probe)

    def add_forward(self, module: nn.Module, component: str, layer: LayerOf) -> None:
        """Have a module's forward be a section; of one module the first that is said holds."""
        if self._open is None or id(module) in self._hooked:
            return
        self._hooked.add(id(module))
        compiled = vars(module).get("_compiled_call_impl")
        if compiled is not None:  # its hooks are compiled too: those that come later do nothing
            section = partial(self._section, component, layer)
            self._compiled.append((module, _outside(compiled, section), compiled))
            module._compiled_call_impl = self._compiled[-1][1]
            return
        self._hook(module, component, layer)

    def _hook(self, module: nn.Module, component: str, layer: LayerOf) -> None:
        opened = self._opened

        def before(_: Any, inner: nn.Module, args: Any, kwargs: Any) -> None:
            if not compiling():
                section = self._section(component, layer, args, kwargs)
                section.__enter__()
                opened.stack.append((inner, section))

        def after(_: Any, inner: nn.Module, args: Any, out: Any) -> None:
            if compiling() or all(known is not inner for known, _ in opened.stack):
                return
            last = None
            while last is not inner:  # what was left open within it ends with it
                last, section = opened.stack.pop()
                section.__exit__(None, None, None)

        self._handles += [
            module.register_forward_pre_hook(hook(before), with_kwargs=True),
            module.register_forward_hook(hook(after), always_call=True),
        ]

    def _section(
        self, component: str, layer: LayerOf, args: Any, kwargs: Any
    ) -> AbstractContextManager[Any]:
        try:
            at = resolved(layer(args, kwargs))
        except Exception:  # a call so wrong that it names no layer: the model will say so
            at = None
        return self._named(component, None if at is UNKNOWN else at)

    def _timed(self, layer: Hashable | None, component: str) -> AbstractContextManager[Any]:
        return self._named(component, layer)

    def _named(self, component: str, layer: Hashable | None) -> AbstractContextManager[Any]:
        opener = self._open
        if opener is None:  # another thread was on its way here when the profile ended
            return nullcontext()
        return opener(component, layer, graph_task() != -1)


def _around(call: Call, section: Callable[[Any, Any], AbstractContextManager[Any]]) -> Call:
    def sectioned(wrapped: Wrapped, /, *args: Any, **kwargs: Any) -> Any:
        if compiling():
            return call(wrapped, *args, **kwargs)
        with section(args, kwargs):
            return call(wrapped, *args, **kwargs)

    return sectioned


def _outside(call: Call, section: Callable[[Any, Any], AbstractContextManager[Any]]) -> Call:
    def sectioned(*args: Any, **kwargs: Any) -> Any:
        with section(args, kwargs):
            return call(*args, **kwargs)

    return sectioned
