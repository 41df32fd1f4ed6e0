"""Reconstructors: what turns memories back into hidden states."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import partial
from threading import get_ident
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.probes.reading import (
    MEMORY_NAME,
    LayerOf,
    fast_layer,
    layer_of,
    layer_parameter,
    parameters,
    spread,
)
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import (
    QUALITY,
    RECONSTRUCTIONS,
    SIMILARITY,
    BaseWatch,
    Ways,
    guarded,
    method,
    report_error,
    resolved,
    timed_call,
)
from cmr_monitor_callbacks.probes.wrapping import Call, Make, hook
from cmr_monitor_callbacks.recording.tally import CALL, UNTIMED

_CALL, _MEMORIES = CALL["reconstruction"], CALL["memories used"]
_UNTIMED: Final = UNTIMED[_CALL]
_FIRST: Final = "num_memories_used"
_METHOD: Final = re.compile(r"reconstruct(_\w+)?$|reweave(_\w+)?$")
_USED: Final = (_FIRST, "memories_used", "num_memories", "n_memories")
_QUALITY: Final = ("reconstruction_quality", "quality")


class ReconstructionWatch(BaseWatch):
    """Calls of a reconstructor, and what its own info says of them."""

    def __init__(self, part: Part, methods: list[str]) -> None:
        super().__init__(part)
        self._methods = methods
        self._compare = False

    @property
    def one_layer(self) -> bool:
        """See `BaseWatch.one_layer`."""
        return bool(self._methods) and self.names_no_layer(self._methods)

    def install(self, ways: Ways) -> None:
        """Hook a module's forward, wrap an object's methods."""
        if "reconstruction" not in ways.report.kinds:
            return
        self._report = ways.report
        ways.report.live(None, RECONSTRUCTIONS)
        if not self._methods and ways.hooks:
            self._hook(ways)
            self.source("reconstruction", "hook", "forward")
        elif ways.wrap:
            for name in self._methods:
                section = self.section("reconstruction", name)
                if ways.replace(self._owner(), name, self._maker(ways, name), section):
                    self.source("reconstruction", "wrapped", name)

    def sample(self, on: bool) -> None:
        """Compare the states before and after in each call, or in none."""
        self._compare = on

    def _record(
        self, layer: LayerOf, seconds: float | None, out: Any, args: Any, kwargs: Any
    ) -> None:
        report = self._report
        at = report.place(resolved(layer(args, kwargs)))
        if at is None:
            return
        items: list[Any] = [*timed_call(at, _CALL, seconds)]
        info = next((part for part in _parts(out) if isinstance(part, Mapping)), None)
        used, quality = _host(_first(info, _USED)), _host(_first(info, _QUALITY))
        if used is not None:
            items += (at + _MEMORIES, used)
        if quality is not None:
            items += (at + QUALITY, quality)
        if self._compare:
            cosine = _similarity((*args, *kwargs.values()), _parts(out))
            if cosine is not None:
                items += (at + SIMILARITY, cosine)
        report.extend(items)

    def _hook(self, ways: Ways) -> None:
        report, scope = ways.report, ways.report.scope
        me, mine = get_ident(), scope.now
        owner, extend, places = self._owner(), ways.report.extend, ways.report.places
        timed = report.timed
        layer = layer_of(method(owner, "forward"), self.unnamed_layer)
        by_name, position = fast_layer(method(owner, "forward"))
        safely = guarded(report, f"{self.path}.forward", partial(self._record, layer))
        blind = report.blind["reconstruction"]

        def before(_: Any, module: nn.Module, args: Any) -> None:
            if compiling():
                blind[0] = True
                return
            under = mine if get_ident() == me else scope.now
            if not under.reconstructing and graph_task() == -1:
                under.reconstructing = True
                now = timed[0]
                under.began = None if now is None else now()
                under.clock = now

        def after(_: Any, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if compiling():
                blind[0] = True
                return
            under = mine if get_ident() == me else scope.now
            if not under.reconstructing or graph_task() != -1:
                return
            under.reconstructing, start = False, under.began
            if out is None:  # this hook is called on the way out too
                raised = sys.exc_info()[1]
                if raised is not None:
                    report.error("reconstruction", resolved(layer(args, kwargs)), raised, module)
                return
            seconds = None if start is None else under.clock() - start
            # the usual case without another frame: a layer seen before, the model's own count
            if type(out) is tuple and len(out) == 2 and not self._compare:
                info = out[1]
                if type(info) is dict and len(info) == 1:
                    try:
                        used = info[_FIRST]
                        at = places[kwargs[by_name] if by_name in kwargs else args[position]]
                    except (LookupError, TypeError):  # a new layer, a default, an id that is no key
                        at = None
                    if at is not None and type(used) is int:
                        if seconds is None:
                            extend((at + _UNTIMED, 0, at + _MEMORIES, used))
                        else:
                            extend((at + _CALL, seconds, at + _MEMORIES, used))
                        return
            safely(seconds, out, args, kwargs)

        report.hooked.add(id(owner))
        ways.forwards.append((self._owner, *self.section("reconstruction", "forward")))
        ways.handles.append(owner.register_forward_pre_hook(hook(before)))
        ways.handles.append(
            owner.register_forward_hook(hook(after), with_kwargs=True, always_call=True)
        )

    def _maker(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        timed = report.timed
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        safely = guarded(report, f"{self.path}.{name}", partial(self._record, layer))
        blind = report.blind["reconstruction"]

        def make(original: Call) -> Call:
            def reconstruct(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                under = scope.now
                if under.reconstructing or graph_task() != -1:
                    return original(*args, **kwargs)
                under.reconstructing = True
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report_error(report, "reconstruction", layer, args, kwargs, exc)
                    raise
                finally:
                    under.reconstructing = False
                safely(None if start is None else now() - start, out, args, kwargs)
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
        one, other = (spread(x.detach().reshape(-1, x.shape[-1])).float() for x in (before, after))
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
    with_forward = part.is_module and "forward" in part.offers
    if with_forward and _takes_memories(method(value, "forward"), True):
        return ReconstructionWatch(part, [])
    return ReconstructionWatch(part, methods) if methods else None


def _takes_memories(function: Any, and_layer: bool) -> bool:
    names = [parameter.name for parameter in parameters(function)]
    if and_layer and layer_parameter(function) is None:
        return False
    return any(MEMORY_NAME.search(name) for name in names)
