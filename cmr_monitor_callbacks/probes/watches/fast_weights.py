"""Fast weights: a memory that is a small network, written by gradient steps; it has no entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import (
    ATTEMPTED,
    CAPTURED,
    STORED,
    BaseWatch,
    Ways,
    guarded,
    timed_call,
)
from cmr_monitor_callbacks.probes.wrapping import Call, Make
from cmr_monitor_callbacks.recording.tally import CALL

_CAPTURE, _RETRIEVAL = CALL["capture"], CALL["retrieval"]


class FastWeightsWatch(BaseWatch):
    """Token positions written to and read from a neural memory."""

    one_layer = True
    """See `BaseWatch.one_layer`."""

    def install(self, ways: Ways) -> None:
        """Wrap its two methods."""
        self._report = ways.report
        self.unknown = ["entries, capacity and evictions: weights have none"]
        if not ways.wrap:
            return
        for name, record, flag, kind in (
            ("store_memories", self._record_store, "storing", "capture"),
            ("retrieve_memories", self._record_retrieval, "retrieving", "retrieval"),
        ):
            if kind in ways.report.kinds and ways.replace(
                self._owner(), name, self._maker(name, record, flag), self.section(kind, name)
            ):
                self.source(kind, "wrapped", name)

    def _maker(self, name: str, record: Callable[..., None], flag: str) -> Make:
        report, scope = self._report, self._report.scope
        timed = report.timed
        safely = guarded(report, f"{self.path}.{name}", record)
        kind = "capture" if flag == "storing" else "retrieval"
        blind = report.blind[kind]

        def make(original: Call) -> Call:
            def call(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                before = getattr(scope.now, flag)
                if before or graph_task() != -1:
                    return original(*args, **kwargs)
                setattr(scope.now, flag, self)
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report.error(kind, self.layer, exc)
                    raise
                finally:
                    setattr(scope.now, flag, before)
                safely(None if start is None else now() - start, out, args, kwargs)
                return out

            return call

        return make

    def _record_store(self, seconds: float | None, out: Any, args: Any, kwargs: Any) -> None:
        at = self._report.place(self.layer)
        sequence = next((x for x in (*args, *kwargs.values()) if torch.is_tensor(x)), None)
        if at is None:
            return
        items: list[Any] = [*timed_call(at, _CAPTURE, seconds)]
        if sequence is not None and sequence.ndim >= 3:
            rows, length = sequence.shape[-3:-1]
            waiting = _remainder(out, sequence)
            items += (at + ATTEMPTED, rows * length, at + CAPTURED, rows * length)
            items += (at + STORED, rows * max(0, length - waiting))
        self._report.extend(items)

    def _record_retrieval(self, seconds: float | None, out: Any, args: Any, kwargs: Any) -> None:
        at = self._report.place(self.layer)
        if at is not None:
            self._report.extend(timed_call(at, _RETRIEVAL, seconds))


def _remainder(out: Any, sequence: torch.Tensor) -> int:
    """Positions that wait in the returned state for their chunk to be complete."""
    for part in out if isinstance(out, tuple) else ():
        for name in getattr(part, "_fields", ()):
            value = getattr(part, name)
            is_cache = "cache" in name and torch.is_tensor(value) and value.ndim >= 2
            if is_cache and value.shape[-1] == sequence.shape[-1]:
                return int(value.shape[-2])
    return 0


def fast_weights(part: Part) -> FastWeightsWatch | None:
    """Recognise a neural memory."""
    if {"store_memories", "retrieve_memories"} <= part.offers:
        return FastWeightsWatch(part)
    return None
