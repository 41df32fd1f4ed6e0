"""Captures: the method of a model that scores hidden states and stores some of them."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.probes.reading import layer_of, layer_parameter, parameters
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import (
    CAPTURES,
    CONSIDERED,
    BaseWatch,
    Ways,
    guarded,
    method,
    report_error,
    resolved,
    timed_call,
)
from cmr_monitor_callbacks.probes.wrapping import Call, Make, hook
from cmr_monitor_callbacks.recording.tally import CALL

_CAPTURE: Final = re.compile(r"_*capture(_\w+)?$")
_CALL: Final = CALL["capture"]


class CaptureWatch(BaseWatch):
    """Calls and time of a capture method; the states it takes are the buffer's to count."""

    def __init__(self, part: Part, methods: list[str]) -> None:
        super().__init__(part)
        self._methods = methods

    def install(self, ways: Ways) -> None:
        """Wrap the methods."""
        if ways.calls_by != "capture" or "capture" not in ways.report.kinds:
            return
        for name in self._methods:
            section = self.section("capture", name)
            if ways.replace(self._owner(), name, self._maker(ways, name), section):
                self.source("", "wrapped", name, "capture_calls", "avg_capture_time")
                ways.report.live(None, CAPTURES)

    def _maker(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        blind = report.blind["capture"]

        timed = report.timed

        def record(seconds: float | None, at_layer: Any) -> None:
            at = report.place(at_layer)
            if at is not None:
                report.extend(timed_call(at, _CALL, seconds))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(original: Call) -> Call:
            def capture(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                if scope.now.capturing or graph_task() != -1:
                    return original(*args, **kwargs)
                at_layer = resolved(layer(args, kwargs))
                scope.now.capturing, scope.now.layer = True, at_layer
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report_error(report, "capture", layer, args, kwargs, exc)
                    raise
                finally:
                    scope.now.capturing, scope.now.layer = False, None
                safely(None if start is None else now() - start, at_layer)
                return out

            return capture

        return make


class ScorerWatch(BaseWatch):
    """States that a relevance scorer looks at, within a capture."""

    def install(self, ways: Ways) -> None:
        """Hook its forward."""
        if not ways.hooks or "capture" not in ways.report.kinds or ways.calls_by != "capture":
            return
        report, scope = ways.report, ways.report.scope

        def record(out: Any) -> None:
            at = report.place(scope.now.layer)
            if at is not None and isinstance(out, torch.Tensor):
                report.extend((at + CONSIDERED, _scored(out)))

        safely = guarded(report, self.path, record)

        def scored(_: Any, module: nn.Module, args: Any, out: Any) -> None:
            if not compiling() and scope.now.capturing and graph_task() == -1:
                safely(out[0] if isinstance(out, tuple) and out else out)

        ways.handles.append(self._owner().register_forward_hook(hook(scored)))
        self.source("", "hook", "forward", "states_considered", "selection_rate")


def _scored(scores: torch.Tensor) -> int:
    """Positions that have a score: rows times positions, whatever stands behind them."""
    rows = 1
    for size in scores.shape[:2]:
        rows *= size
    return rows


def capture(part: Part) -> CaptureWatch | None:
    """Recognise a method that captures the states of a layer."""
    methods = [
        name
        for name in sorted(part.offers)
        if _CAPTURE.match(name) and _of_states_and_layer(method(part.value, name))
    ]
    return CaptureWatch(part, methods) if methods else None


def _of_states_and_layer(function: Any) -> bool:
    names = [parameter.name for parameter in parameters(function)]
    return layer_parameter(function) is not None and any(
        "state" in name or "hidden" in name or name in ("x", "h") for name in names
    )


def scorer(part: Part) -> ScorerWatch | None:
    """Recognise a module that scores the relevance of states."""
    if not part.is_module:
        return None
    if inspect.getattr_static(part.value, "relevance_threshold", None) is None:
        return None
    inner = set(attributes(part.value).get("_modules", {}))
    holds_memory = any("buffer" in name or "retriev" in name for name in inner)
    return None if holds_memory else ScorerWatch(part)
