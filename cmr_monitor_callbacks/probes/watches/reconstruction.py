"""Reconstructors: what turns memories back into hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.probes.reading import (
    MEMORY_NAME,
    layer_of,
    layer_parameter,
    parameters,
)
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import (
    MEMORIES,
    QUALITY,
    RECONSTRUCTIONS,
    SIMILARITY,
    USING,
    BaseWatch,
    Ways,
    guarded,
    method,
    report_error,
    resolved,
)
from cmr_monitor_callbacks.recording.tally import SECONDS

_TIME: Final = SECONDS["reconstruction"]
_METHOD: Final = re.compile(r"reconstruct(_\w+)?$|reweave(_\w+)?$")
_USED: Final = ("num_memories_used", "memories_used", "num_memories", "n_memories")
_QUALITY: Final = ("reconstruction_quality", "quality")
_POSITIONS: Final = 256


class ReconstructionWatch(BaseWatch):
    """Calls of a reconstructor, and what its own info says of them."""

    def __init__(self, part: Part, methods: list[str]) -> None:
        super().__init__(part)
        self._methods = methods
        self._compare = False

    def install(self, ways: Ways) -> None:
        """Hook a module's forward, wrap an object's methods."""
        if "reconstruction" not in ways.report.kinds:
            return
        self._report = ways.report
        if not self._methods and ways.hooks:
            self._hook(ways)
            self.source("reconstruction", "hook", "forward")
        elif ways.wrap:
            for name in self._methods:
                if ways.wraps.replace(self._owner(), name, self._maker(ways, name)):
                    self.source("reconstruction", "wrapped", name)

    def sample(self, on: bool) -> None:
        """Compare the states before and after in each call, or in none."""
        self._compare = on

    def _recorder(self, name: str) -> Callable[..., None]:
        report = self._report

        def record(seconds: float, at_layer: Any, out: Any, args: Any, kwargs: Any) -> None:
            at = report.place(at_layer)
            if at is None:
                return
            items: list[Any] = [at + RECONSTRUCTIONS, 1, at + _TIME, seconds]
            info = next((part for part in _parts(out) if isinstance(part, Mapping)), None)
            used, quality = _host(_first(info, _USED)), _host(_first(info, _QUALITY))
            if used is not None:
                items += (at + USING, 1 if used > 0 else 0, at + MEMORIES, used)
            if quality is not None:
                items += (at + QUALITY, quality)
            if self._compare:
                cosine = _similarity((*args, *kwargs.values()), _parts(out))
                if cosine is not None:
                    items += (at + SIMILARITY, cosine)
            report.extend(items)

        return guarded(report, f"{self.path}.{name}", record)

    def _hook(self, ways: Ways) -> None:
        scope, now = ways.report.scope, ways.report.now
        owner = self._owner()
        layer = layer_of(method(owner, "forward"), self.unnamed_layer)
        safely = self._recorder("forward")
        started: list[float] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not compiling() and graph_task() == -1 and not scope.reconstructing:
                scope.reconstructing = True
                started.append(now())

        def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if compiling() or graph_task() != -1 or not started:
                return
            seconds = now() - started.pop()
            scope.reconstructing = False
            if out is not None:  # else its forward raised: the root's hook counts that
                safely(seconds, resolved(layer(args, kwargs)), out, args, kwargs)

        ways.handles.append(owner.register_forward_pre_hook(before, with_kwargs=True))
        ways.handles.append(owner.register_forward_hook(after, with_kwargs=True, always_call=True))

    def _maker(self, ways: Ways, name: str) -> Callable[..., Any]:
        report, scope, now = ways.report, ways.report.scope, ways.report.now
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        safely = self._recorder(name)

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def reconstruct(*args: Any, **kwargs: Any) -> Any:
                if compiling() or scope.reconstructing or graph_task() != -1:
                    return function(ref(), *args, **kwargs)
                scope.reconstructing = True
                start = now()
                try:
                    out = function(ref(), *args, **kwargs)
                except BaseException as exc:
                    report_error(report, layer, args, kwargs, exc)
                    raise
                finally:
                    scope.reconstructing = False
                safely(now() - start, resolved(layer(args, kwargs)), out, args, kwargs)
                return out

            return reconstruct

        return make


def _parts(out: Any) -> tuple[Any, ...]:
    return out if isinstance(out, tuple) else (out,)


def _first(info: Mapping[str, Any] | None, names: tuple[str, ...]) -> Any:
    return None if info is None else next((info[name] for name in names if name in info), None)


def _host(value: Any) -> float | None:
    """A number that the host has; one on a device is not waited for."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.numel() != 1:
            return None
        return float(value.detach())
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _similarity(given: tuple[Any, ...], out: tuple[Any, ...]) -> float | None:
    """Mean cosine of the states before and after, of at most 256 positions; on the host only."""
    after = next((x for x in out if isinstance(x, torch.Tensor)), None)
    if after is None or after.device.type != "cpu" or not after.is_floating_point():
        return None
    before = next(
        (x for x in given if isinstance(x, torch.Tensor) and x.shape == after.shape), None
    )
    if before is None or after.ndim < 2 or not after.numel():
        return None
    with torch.no_grad():
        pair = [x.detach().reshape(-1, x.shape[-1]) for x in (before, after)]
        step = max(1, len(pair[0]) // _POSITIONS)
        one, other = (x[::step][:_POSITIONS].float() for x in pair)
        cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=-1).mean())
    return max(-1.0, min(1.0, cosine)) if cosine == cosine else None  # rounding passes 1


def reconstructor(part: Part) -> ReconstructionWatch | None:
    """Recognise what takes hidden states, memories and a layer, and gives states back."""
    value = part.value
    methods = [
        name
        for name in sorted(part.offers)
        if _METHOD.match(name) and _takes_memories(method(value, name), False)
    ]
    is_module = isinstance(value, nn.Module) and "forward" in part.offers
    if is_module and _takes_memories(method(value, "forward"), True):
        return ReconstructionWatch(part, [])
    return ReconstructionWatch(part, methods) if methods else None


def _takes_memories(function: Any, and_layer: bool) -> bool:
    names = [parameter.name for parameter in parameters(function)]
    if and_layer and layer_parameter(function) is None:
        return False
    return any(MEMORY_NAME.search(name) for name in names)
