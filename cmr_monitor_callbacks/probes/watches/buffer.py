"""Buffers: what is stored, refused, evicted, cleared and loaded, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import partial
from threading import get_ident
from typing import Any, Final

from cmr_monitor_callbacks.probes.holding import Holding
from cmr_monitor_callbacks.probes.reading import (
    UNKNOWN,
    LayerOf,
    fast_layer,
    held_layer,
    layer_of,
    offered_states,
)
from cmr_monitor_callbacks.probes.report import LOADING, UnderWay, compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import (
    ATTEMPTED,
    CAPTURED,
    CAPTURES,
    CLEARED,
    CLEARS,
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
    timed_call,
)
from cmr_monitor_callbacks.probes.watches.counters import counts_moves
from cmr_monitor_callbacks.probes.watches.retrieval import RetrievalWatch
from cmr_monitor_callbacks.probes.watches.shelf import Shelf, find_shelf
from cmr_monitor_callbacks.probes.wrapping import Call, Make
from cmr_monitor_callbacks.recording.tally import CALL, UNTIMED

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
_CALL, _TAKEN, _REFUSED, _TAKEN_IN, _REFUSED_IN = (
    CALL[name]
    for name in (
        "capture",
        "state taken",
        "state refused",
        "state taken in a capture",
        "state refused in a capture",
    )
)
_COUNTED: Final = (
    ATTEMPTED,
    CAPTURED,
    STORED,
    EVICTED,
    CLEARED,
    LOADED,
    OVERWRITTEN,
)
Look = tuple[dict[Any, int], tuple[Any, ...]]
"""Lengths by layer, and the ends of the container that a store is about."""
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
        self.looks = True
        """Whether its length is looked at before and after each store."""
        self._retrieval: RetrievalWatch | None = None
        self._at_first: dict[Any, int] = {}
        self._layers: dict[Any, None] = {}
        """Seen so far; one may vanish from the container."""
        self.counts_calls = False
        """Whether stores are seen, call by call."""
        self._counts_itself = False

    @property
    def one_layer(self) -> bool:
        """See `BaseWatch.one_layer`."""
        told = (_STORE, _INSERT, _REMOVE, _CLEAR, _RETRIEVE)
        methods = [name for name in self._offers if any(kind.match(name) for kind in told)]
        return self.names_no_layer(methods) and set(self.shelf.lengths()) <= {self.layer}

    def install(self, ways: Ways) -> None:
        """Wrap what the settings allow."""
        self._report = ways.report
        if ways.wrap and ways.report.kinds & {"capture", "buffer"}:
            self._wrap(ways)
        self._counts_itself = ways.poll and counts_moves(self._owner())
        names = [name for name in sorted(self._offers) if _RETRIEVE.match(name)]
        part = Part(self._owner(), self.path, (), self._offers)
        self._retrieval = RetrievalWatch(part, names, self.layer)
        self._retrieval.layered = self.layered
        self._retrieval.install(ways)
        self.said.update(self._retrieval.said)
        if "buffer" in ways.report.kinds:
            self.source("buffer", "polled", self.shelf.name)
        self._at_first = {layer: n for layer, n in self.shelf.lengths().items() if n}
        for layer in (None, *self.shelf.lengths()):
            self._meet(layer)
        if self._counts_captures(ways):
            ways.report.live(None, CAPTURES)

    def sample(self, on: bool) -> None:
        """See `RetrievalWatch.sample`."""
        if self._retrieval is not None:
            self._retrieval.sample(on)

    def _counts_captures(self, ways: Ways) -> bool:
        """Whether to store is to capture (no method of the model does), and that is asked for."""
        return self.counts_calls and ways.calls_by == "store" and "capture" in ways.report.kinds

    def _meet(self, layer: Any) -> None:
        """A layer of this buffer is seen for the first time."""
        if layer is not None:
            self._layers.setdefault(layer)
        if self.counts_calls:
            self._report.live(layer, *_COUNTED)
            if "capture" in self._report.kinds:
                self._report.live(layer, CAPTURES)

    def _place(self, layer: Any) -> int | None:
        """Where a layer's numbers go; it may come and go between two looks at a window's end."""
        at = self._report.place(layer)
        if at is not None and layer not in self._layers:
            self._meet(layer)
        return at

    def _wrap(self, ways: Ways) -> None:
        owner = self._owner()
        offered = sorted(self._offers)
        of_buffer = "buffer" in ways.report.kinds
        if not of_buffer:  # what becomes of a state that was stored
            ways.report.leave_out("buffer", "moves")
        removers = [name for name in offered if _REMOVE.match(name) and of_buffer]
        inserters = [name for name in offered if _INSERT.match(name) and of_buffer]
        removes = [ways.replace(owner, name, self._remover(ways, name)) for name in removers]
        inserts = [ways.replace(owner, name, self._inserter(ways, name)) for name in inserters]
        self.looks = of_buffer and not (any(removes) and any(inserts))
        for name in offered:
            if _STORE.match(name):
                # where no method of the model captures, to store is to capture
                component = "capture" if ways.calls_by == "store" else "store"
                section = self.section(component, name)
                made = ways.replace(owner, name, self._store(ways, name), section)
                self.counts_calls |= made
                if made:
                    self.source("capture", "wrapped", name)
            elif _CLEAR.match(name):
                if of_buffer and ways.replace(owner, name, self._clearer(ways, name)):
                    ways.report.live(None, CLEARS)
            elif _LOAD.match(name):
                ways.replace(owner, name, self._loader(ways))
        if of_buffer:
            how = "polled" if self.looks else "wrapped"
            removes_by = removers[0] if removers else self.shelf.name
            self.source("buffer", how, removes_by, "eviction_count")

    # -- what is called instead -------------------------------------------------------------

    def _store(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        me, mine = get_ident(), scope.now
        captures = "capture" in report.kinds
        timed: list[Any] = report.timed if captures else [None]
        called = method(self._owner(), name)
        layer = layer_of(called, self.unnamed_layer)
        by_name, position = fast_layer(called)
        usual = by_name != "" and name.endswith(("_state", "_entry"))
        own_calls, blind = captures and ways.calls_by == "store", report.blind["capture"]
        extend, places = report.extend, report.places
        lengths, ends = self.shelf.lengths, self.shelf.ends
        safely = guarded(
            report, f"{self.path}.{name}", partial(self._record_store, name, layer, own_calls)
        )

        def make(original: Call) -> Call:
            def inside(under: UnderWay, args: Any, kwargs: Any) -> Any:
                """A store within a load is one; within a store it is what that one does."""
                outer, inner, inserted = under.storing, under.stored, under.inserted
                if outer is LOADING or graph_task() != -1:
                    return original(*args, **kwargs)
                before = None
                if self.looks and outer is not self:
                    before = lengths(), ends(resolved(layer(args, kwargs)))
                under.storing = self
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report_error(report, "buffer", layer, args, kwargs, exc)
                    raise
                finally:
                    under.storing = outer
                seconds = None if start is None else now() - start
                safely(under, seconds, out, before, inner, inserted, args, kwargs)
                return out

            report.codes.add(inside.__code__)

            def store(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                under = mine if get_ident() == me else scope.now
                if under.storing is not None or graph_task() != -1:
                    return inside(under, args, kwargs)
                inner, inserted = under.stored, under.inserted
                under.storing = self
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report_error(report, "buffer", layer, args, kwargs, exc)
                    raise
                finally:
                    under.storing = None
                seconds = None if start is None else now() - start
                # the usual case without another frame: a layer seen before, and one state
                if usual and under.stored == inner:
                    try:
                        at = places[kwargs[by_name] if by_name in kwargs else args[position]]
                    except (LookupError, TypeError):  # a new layer, a default, an id that is no key
                        at = None
                    if at is not None:
                        under.stored = inner + 1
                        if own_calls and not under.capturing:
                            call = _REFUSED if out is False else _TAKEN
                            if seconds is None:
                                extend((at + UNTIMED[call], 0))
                            else:
                                extend((at + call, seconds))
                        else:
                            extend((at + (_REFUSED_IN if out is False else _TAKEN_IN), 0))
                        if out is not False and under.inserted == inserted:
                            extend((at + OVERWRITTEN, 1))  # taken, and nothing was put in
                        return out
                safely(under, seconds, out, None, inner, inserted, args, kwargs)
                return out

            def store_with_looks(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                return inside(scope.now, args, kwargs)

            return store_with_looks if self.looks else store

        return make

    def _record_store(
        self,
        name: str,
        layer: LayerOf,
        own_calls: bool,
        under: UnderWay,
        seconds: float | None,
        out: Any,
        before: Look | None,
        inner: int,
        inserted: int,
        args: Any,
        kwargs: Any,
    ) -> None:
        report, called = self._report, resolved(layer(args, kwargs))
        at = report.place(called)
        if called not in self._layers:
            self._meet(called)
        if before is not None:
            self._record_look(before, called, at, out, inner, name, args, kwargs)
        counted = under.stored != inner  # by an inner store
        if not counted:
            under.stored += 1
        if at is None:
            return
        if not counted:
            offered = offered_states(name, args, kwargs)
            stored = 0 if out is False else offered
            report.extend((at + ATTEMPTED, offered, at + CAPTURED, offered, at + STORED, stored))
            if before is None and stored:
                put_in = under.inserted - inserted
                report.extend((at + OVERWRITTEN, max(0, stored - put_in)))
        if own_calls and not under.capturing and under.storing is not self:
            report.extend(timed_call(at, _CALL, seconds))

    def _record_look(
        self,
        before: Look,
        called: Any,
        at: int | None,
        out: Any,
        inner: int,
        name: str,
        args: Any,
        kwargs: Any,
    ) -> None:
        """What a store dropped in silence: what should be there and is not."""
        report, (had, first_and_last) = self._report, before
        counted = report.scope.now.stored - inner
        offered = counted or (0 if out is False else offered_states(name, args, kwargs))
        has = self.shelf.lengths()
        for layer in {*had, *has}:
            where = self._place(layer)
            if where is None:
                continue
            gone = had.get(layer, 0) + (offered if where == at else 0) - has.get(layer, 0)
            if gone > 0:
                dropped = where != at or self.shelf.grew(called, first_and_last)
                report.extend((where + (EVICTED if dropped else OVERWRITTEN), gone))

    def _remover(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        layer = self._layer_of_entry(name)
        extend, place = report.extend, report.place

        def record(at_layer: Any) -> None:
            at = place(at_layer)
            if at is not None:
                extend((at + (CLEARED if scope.now.clearing else EVICTED), 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(original: Call) -> Call:
            def remove(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(*args, **kwargs)
                at_layer = layer(args, kwargs)
                out = original(*args, **kwargs)
                if out is not False:
                    safely(at_layer)
                return out

            return remove

        return make

    def _inserter(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        layer = self._layer_of_entry(name)
        extend, place = report.extend, report.place

        def record(at_layer: Any) -> None:
            at = place(at_layer)
            if at_layer not in self._layers:
                self._meet(at_layer)
            if at is not None:
                extend((at + LOADED, 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(original: Call) -> Call:
            def insert(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(*args, **kwargs)
                out = original(*args, **kwargs)
                if out is not False:
                    under = scope.now
                    if under.storing is None or under.storing is LOADING:
                        safely(layer(args, kwargs))
                    else:
                        under.inserted += 1
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

    def _clearer(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        layer = layer_of(method(self._owner(), name), self.unnamed_layer)
        lengths = self.shelf.lengths

        def record(before: dict[Any, int], came: Came, args: Any, kw: Any) -> None:
            after, came_since = lengths(), report.came()
            kind = EVICTED if scope.now.storing is self else CLEARED
            for each in {*before, *after}:
                at = self._place(each)
                if at is not None:
                    moved = came_since(each) - came(each)
                    gone = before.get(each, 0) + moved - after.get(each, 0)
                    report.extend((at + kind, max(0, int(gone))))
            at = report.place(resolved(layer(args, kw)))
            if at is not None and scope.now.storing is None:
                report.extend((at + CLEARS, 1))

        safely = guarded(report, f"{self.path}.{name}", record)

        def make(original: Call) -> Call:
            def clear(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(*args, **kwargs)
                under = scope.now
                in_store = under.storing is self
                if under.clearing or (in_store and self.looks):
                    return original(*args, **kwargs)  # the look after the store tells
                report.settle()
                before, came = lengths(), report.came()
                under.clearing = not in_store
                try:
                    out = original(*args, **kwargs)
                finally:
                    under.clearing = False
                safely(before, came, args, kwargs)
                return out

            return clear

        return make

    def _loader(self, ways: Ways) -> Make:
        scope = ways.report.scope

        def make(original: Call) -> Call:
            def load(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    return original(*args, **kwargs)
                under = scope.now
                outer, under.storing = under.storing, LOADING
                try:
                    return original(*args, **kwargs)
                finally:
                    under.storing = outer

            return load

        return make

    # -- what holds now ---------------------------------------------------------------------

    def holds(self) -> dict[Any, int]:
        """Entries held now, by layer."""
        held = {} if self._owner() is None else self.shelf.lengths()
        return held if self.counts_calls else {None: sum(held.values())}

    @property
    def counts_moves(self) -> bool:
        """Whether it is known what is stored: from its calls, or from its own counters."""
        return self.counts_calls or self._counts_itself

    def holdings(self) -> dict[Any, Holding]:
        """Entries, capacity and bytes, by layer; the total limit of them all under None."""
        if self._owner() is None:
            return {}
        lengths, sizes = self.shelf.lengths(), self.shelf.sizes()
        each, total = self.shelf.capacities()
        found: dict[Any, Holding] = {}
        for layer in {**self._layers, **lengths}:
            if layer not in self._layers:
                self._meet(layer)
            limit = each.get(layer) if isinstance(each, dict) else each
            if limit is None and not self.layered:
                limit = total
            at_first = self._at_first.pop(layer, 0)
            found[layer] = Holding(lengths.get(layer, 0), limit, sizes.get(layer, 0), at_first)
        if self.layered or not found:
            found[None] = Holding(0, total, 0)
        return found


def buffer(part: Part) -> BufferWatch | None:
    """Recognise an object that stores states and holds them."""
    stores = [name for name in part.offers if _STORE.match(name)]
    sure = any(_SURE.match(name) for name in stores)
    if not sure and not (stores and any(_RETRIEVE.match(name) for name in part.offers)):
        return None
    watch = BaseWatch(part)
    shelf = find_shelf(watch._owner, lambda: watch.layer, watch.layered)
    return None if shelf is None else BufferWatch(part, shelf)
