"""Buffers: what is stored, refused, evicted, cleared and loaded, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from typing import Any, Final

from cmr_monitor_callbacks.probes.reading import (
    UNKNOWN,
    held_layer,
    layer_of,
    offered_states,
)
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import (
    ATTEMPTED,
    BYTES,
    CAPACITY,
    CAPTURED,
    CAPTURES,
    CLEARED,
    CLEARS,
    ENTRIES,
    EVICTED,
    LOADED,
    OVERWRITTEN,
    STORED,
    BaseWatch,
    Ways,
    guarded,
    method,
    report_error,
    resolved,
)
from cmr_monitor_callbacks.probes.watches.retrieval import RetrievalWatch
from cmr_monitor_callbacks.probes.watches.shelf import Shelf, find_shelf
from cmr_monitor_callbacks.recording.tally import SECONDS

_STORE: Final = re.compile(
    r"(store|add|insert|write|append|push|put|enqueue|remember)"
    r"(_(state|states|entry|entries|memory|memories|batch|one|many|item|items))?$"
)
_SURE: Final = re.compile(r"(store|add|insert|write)_(state|states|entry|entries|memory|memories)$")
_INSERT: Final = re.compile(r"_+(insert|append|add)(_(state|entry|memory))?$")
_REMOVE: Final = re.compile(r"_*(remove|delete|drop|evict)(_(state|entry|memory))$")
_CLEAR: Final = re.compile(
    r"(clear|reset|wipe|empty|flush)"
    r"(_(all|layer|layers|sequence|memory|memories|buffer|buffers|entries|states))*$"
)
_LOAD: Final = re.compile(
    r"(load|restore|import)(_(state|entries|memory|memories|states|from\w*))?$"
)
_RETRIEVE: Final = re.compile(r"retrieve|(search|query|recall|lookup|read|sample|get_top)(_\w+)?$")
_TIME: Final = SECONDS["capture"]
Came = Callable[[Hashable | None], float]


class BufferWatch(BaseWatch):
    """One buffer.

    Stores, inserts and removals that its own methods make are counted call by call. Where it has no
    method that removes one entry, its length is looked at before and after each store. What else
    came or went between two looks, by whoever, is told by the difference (`poll`).
    """

    def __init__(self, part: Part, shelf: Shelf, layer: Hashable | None = None) -> None:
        super().__init__(part, layer)
        self.shelf = shelf
        shelf._layer = lambda: self.layer
        self.layered = self.layered or shelf.by_layer
        self._offers = part.offers
        self._removes = False
        self._retrieval: RetrievalWatch | None = None
        self.counts_moves = False
        """Whether stores are seen; else only what holds now is known."""

    def install(self, ways: Ways) -> None:
        """Wrap what the settings allow."""
        self._report = ways.report
        if ways.wrap and "capture" in ways.report.kinds:
            self._wrap(ways)
        names = [name for name in sorted(self._offers) if _RETRIEVE.match(name)]
        part = Part(self._owner(), self.path, (), self._offers)
        self._retrieval = RetrievalWatch(part, names, self.layer)
        self._retrieval.layered = self.layered
        self._retrieval.install(ways)
        self.said.update(self._retrieval.said)
        self.source("buffer", "polled", self.shelf.name)

    def _wrap(self, ways: Ways) -> None:
        owner = self._owner()
        offered = sorted(self._offers)
        removers = [name for name in offered if _REMOVE.match(name)]
        self._removes = any(
            [ways.wraps.replace(owner, name, self._remover(ways, name)) for name in removers]
        )
        for name in offered:
            if _STORE.match(name):
                made = ways.wraps.replace(owner, name, self._store(ways, name))
                self.counts_moves |= made
                if made:
                    self.source("capture", "wrapped", name)
            elif _INSERT.match(name):
                ways.wraps.replace(owner, name, self._inserter(ways, name))
            elif _CLEAR.match(name):
                ways.wraps.replace(owner, name, self._clearer(ways, name))
            elif _LOAD.match(name):
                ways.wraps.replace(owner, name, self._loader(ways))
        how = "wrapped" if self._removes else "polled"
        self.source("buffer", how, removers[0] if removers else self.shelf.name, "eviction_count")

    # -- what is called instead -------------------------------------------------------------

    def _store(self, ways: Ways, name: str) -> Callable[..., Any]:
        report, scope, now = ways.report, ways.report.scope, ways.report.now
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        looks = not self._removes
        single = offered_states(name, (), {}) if name.endswith(("_state", "_entry")) else None
        own_calls = ways.calls_by == "store"
        extend, place = report.extend, report.place
        lengths = self.shelf.lengths

        def record(seconds: float, out: Any, before: Any, inner: int, args: Any, kw: Any) -> None:
            at = place(resolved(layer(args, kw)))
            if before is not None:
                self._record_look(before, lengths(), at, out, inner, name, args, kw)
            if scope.stored != inner:  # an inner store was counted
                if own_calls and not scope.capturing and at is not None:
                    extend((at + CAPTURES, 1, at + _TIME, seconds))
                return
            scope.stored += 1
            if at is None:
                return
            offered = single or offered_states(name, args, kw)
            stored = 0 if out is False else offered
            if own_calls and not scope.capturing:
                extend(
                    (
                        at + ATTEMPTED,
                        offered,
                        at + CAPTURED,
                        offered,
                        at + STORED,
                        stored,
                        at + CAPTURES,
                        1,
                        at + _TIME,
                        seconds,
                    )
                )
            else:
                extend((at + ATTEMPTED, offered, at + CAPTURED, offered, at + STORED, stored))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def store(*args: Any, **kwargs: Any) -> Any:
                if compiling() or graph_task() != -1 or scope.loading:
                    return function(ref(), *args, **kwargs)
                outer, inner = scope.storing, scope.stored
                before = lengths() if looks and outer is not self else None
                scope.storing = self
                start = now()
                try:
                    out = function(ref(), *args, **kwargs)
                except BaseException as exc:
                    report_error(report, layer, args, kwargs, exc)
                    raise
                finally:
                    scope.storing = outer
                if outer is self:
                    if scope.stored == inner:
                        safely(now() - start, out, None, inner, args, kwargs)
                else:
                    safely(now() - start, out, before, inner, args, kwargs)
                return out

            return store

        return make

    def _record_look(
        self,
        before: dict[Any, int],
        after: dict[Any, int],
        at: int | None,
        out: Any,
        inner: int,
        name: str,
        args: Any,
        kwargs: Any,
    ) -> None:
        """Evictions that a store made in silence: what should be there and is not."""
        report = self._report
        counted = report.scope.stored - inner
        offered = counted or (0 if out is False else offered_states(name, args, kwargs))
        for layer in {*before, *after}:
            where = report.place(layer)
            if where is None:
                continue
            stored = offered if where == at else 0
            gone = before.get(layer, 0) + stored - after.get(layer, 0)
            if gone > 0:
                full = before.get(layer, 0) >= (self._capacity(layer) or 0)
                report.extend((where + (EVICTED if full else OVERWRITTEN), gone))
            elif where == at or gone == 0:
                report.extend((where + EVICTED, 0))

    def _capacity(self, layer: Any) -> int | None:
        each, total = self.shelf.capacities()
        if isinstance(each, dict):
            return each.get(layer)
        return each if each is not None else total

    def _remover(self, ways: Ways, name: str) -> Callable[..., Any]:
        report, scope = ways.report, ways.report.scope
        layer = self._layer_of_entry(name)
        extend, place = report.extend, report.place

        def record(at_layer: Any) -> None:
            at = place(at_layer)
            if at is not None:
                extend((at + (CLEARED if scope.clearing else EVICTED), 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def remove(*args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return function(ref(), *args, **kwargs)
                at_layer = layer(args, kwargs)
                out = function(ref(), *args, **kwargs)
                if out is not False:
                    safely(at_layer)
                return out

            return remove

        return make

    def _inserter(self, ways: Ways, name: str) -> Callable[..., Any]:
        report, scope = ways.report, ways.report.scope
        layer = self._layer_of_entry(name)
        extend, place = report.extend, report.place

        def record(at_layer: Any) -> None:
            at = place(at_layer)
            if at is not None:
                extend((at + LOADED, 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def insert(*args: Any, **kwargs: Any) -> Any:
                out = function(ref(), *args, **kwargs)
                if not compiling() and scope.storing is None and out is not False:
                    safely(layer(args, kwargs))
                return out

            return insert

        return make

    def _layer_of_entry(self, name: str) -> Callable[[Any, Any], Any]:
        named = layer_of(method(self._owner(), name), UNKNOWN)

        def layer(args: Any, kwargs: Any) -> Any:
            found = named(args, kwargs)
            if found is UNKNOWN:
                entry = args[0] if args else next(iter(kwargs.values()), None)
                found = held_layer(entry)
            return self.unnamed_layer() if found is UNKNOWN else found

        return layer

    def _clearer(self, ways: Ways, name: str) -> Callable[..., Any]:
        report, scope = ways.report, ways.report.scope
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        lengths = self.shelf.lengths

        def record(before: dict[Any, int], came: Came, args: Any, kw: Any) -> None:
            after, came_since = lengths(), report.came()
            kind = EVICTED if scope.storing is self else CLEARED
            for each in {*before, *after}:
                at = report.place(each)
                if at is not None:
                    moved = came_since(each) - came(each)
                    gone = before.get(each, 0) + moved - after.get(each, 0)
                    report.extend((at + kind, max(0, int(gone))))
            at = report.place(resolved(layer(args, kw)))
            if at is not None and scope.storing is None:
                report.extend((at + CLEARS, 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def clear(*args: Any, **kwargs: Any) -> Any:
                in_store = scope.storing is self
                if compiling() or scope.clearing or (in_store and not self._removes):
                    return function(ref(), *args, **kwargs)  # the look after the store tells
                before, came = lengths(), report.came()
                scope.clearing = not in_store
                try:
                    out = function(ref(), *args, **kwargs)
                finally:
                    scope.clearing = False
                safely(before, came, args, kwargs)
                return out

            return clear

        return make

    def _loader(self, ways: Ways) -> Callable[..., Any]:
        scope = ways.report.scope

        def make(function: Callable[..., Any], ref: Callable[[], Any]) -> Callable[..., Any]:
            def load(*args: Any, **kwargs: Any) -> Any:
                outer, scope.loading = scope.loading, True
                try:
                    return function(ref(), *args, **kwargs)
                finally:
                    scope.loading = outer

            return load

        return make

    # -- what holds now ---------------------------------------------------------------------

    def holds(self) -> dict[Any, int]:
        """Entries held now, by layer."""
        return {} if self._owner() is None else self.shelf.lengths()

    def poll(self) -> None:
        """Entries, capacity and bytes."""
        report = self._report
        if "buffer" not in report.kinds or self._owner() is None:
            return
        lengths, sizes = self.shelf.lengths(), self.shelf.sizes()
        each, total = self.shelf.capacities()
        for layer, count in lengths.items():
            at = report.place(layer)
            if at is None:
                continue
            limit = each.get(layer) if isinstance(each, dict) else each
            if limit is None and not self.layered:
                limit = total
            self._extend_given(at, (ENTRIES, count), (CAPACITY, limit), (BYTES, sizes.get(layer)))
        if self.layered and total is not None:
            self._extend_given(0, (CAPACITY, total))

    def _extend_given(self, at: int, *pairs: tuple[int, Any]) -> None:
        for place, value in pairs:
            if value is not None:
                self._report.extend((at + place, value))


def buffer(part: Part) -> BufferWatch | None:
    """Recognise an object that stores states and holds them."""
    stores = [name for name in part.offers if _STORE.match(name)]
    sure = any(_SURE.match(name) for name in stores)
    if not sure and not (stores and any(_RETRIEVE.match(name) for name in part.offers)):
        return None
    watch = BaseWatch(part)
    shelf = find_shelf(watch._owner, lambda: watch.layer, watch.layered)
    return None if shelf is None else BufferWatch(part, shelf)
