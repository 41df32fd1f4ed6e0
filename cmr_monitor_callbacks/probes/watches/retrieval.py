"""Retrieval: methods that give entries back, of a buffer or of a retriever."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from threading import get_ident
from typing import Any, Final

import torch

from cmr_monitor_callbacks.probes.reading import (
    MOST_LOOKED_AT,
    LayerOf,
    entries_of,
    fast_layer,
    fields_of,
    layer_of,
    returned_entries,
    spread,
    state_of,
)
from cmr_monitor_callbacks.probes.report import Report, compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import (
    CACHE_HITS,
    CACHE_OPERATIONS,
    LIKENESS,
    RETRIEVALS,
    RETURNED,
    BaseWatch,
    Ways,
    guarded,
    method,
    report_error,
    resolved,
    timed_call,
)
from cmr_monitor_callbacks.probes.wrapping import Call, Make
from cmr_monitor_callbacks.recording.tally import CALL, UNTIMED

_CALL, _HIT, _MISS = (CALL[name] for name in ("retrieval", "cache hit", "cache miss"))
_UNTIMED = UNTIMED[_CALL]
_OF_EACH: Final = 16
"""Most entries that are looked at, where each position has its own."""


class CacheCounter:
    """The model's own ``cache_hits``, which may be there and dead: nothing is said until it moves.

    Args:
        owner: attributes of the retriever.
    """

    def __init__(self, owner: Mapping[str, Any]) -> None:
        self._own = owner
        self._stats = next(
            (
                name
                for name, value in owner.items()
                if name.endswith("stats") and isinstance(value, Mapping) and "cache_hits" in value
            ),
            None,
        )
        self.there = self._stats is not None or type(owner.get("cache_hits")) is int
        self.live = False
        self.waiting: dict[tuple[Any, int], int] = {}
        """By stage and place, operations since the start; the counter may turn out to be a live
        one."""

    def read(self) -> Any:
        """Its value now, from where it is now."""
        if self._stats is None:
            return self._own.get("cache_hits", 0)
        return self._own.get(self._stats, {}).get("cache_hits", 0)


class RetrievalWatch(BaseWatch):
    """Outermost calls of the retrieval methods of one object."""

    def __init__(self, part: Part, methods: list[str], layer: Hashable | None = None) -> None:
        super().__init__(part, layer)
        self._methods = methods
        self._cache: CacheCounter | None = None
        self._compare = False

    def sample(self, on: bool) -> None:
        """Compare the query and what it was given in each call, or in none."""
        self._compare = on

    @property
    def one_layer(self) -> bool:
        """See `BaseWatch.one_layer`."""
        return self.names_no_layer(self._methods)

    def install(self, ways: Ways) -> None:
        """Wrap the methods."""
        owner, report = self._owner(), ways.report
        if "retrieval" not in report.kinds or not ways.wrap:
            return
        counter = CacheCounter(attributes(owner))
        self._cache = counter if counter.there else None
        for name in self._methods:
            if ways.replace(owner, name, self._maker(ways, name), self.section("retrieval", name)):
                self.source("retrieval", "wrapped", name)
                report.live(None, RETRIEVALS, RETURNED)
        if self._cache is not None and self.said:
            self.source("", "wrapped", "cache_hits", "cache_hits", "cache_hit_rate")

    def _maker(self, ways: Ways, name: str) -> Make:
        report, scope = ways.report, ways.report.scope
        me, mine = get_ident(), scope.now
        timed = report.timed
        cache, extend, places = self._cache, ways.report.extend, ways.report.places
        called = method(self._owner(), name)
        layer = layer_of(called, self.unnamed_layer)
        by_name, position = fast_layer(called)
        usual = by_name != "" and cache is None
        blind = report.blind["retrieval"]
        safely = guarded(report, f"{self.path}.{name}", partial(self._record, report, layer))

        def make(original: Call) -> Call:
            def retrieve(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                under = mine if get_ident() == me else scope.now
                if under.retrieving or graph_task() != -1:
                    return original(*args, **kwargs)
                under.retrieving = True
                hits = None if cache is None else cache.read()
                now = timed[0]
                start = None if now is None else now()
                try:
                    out = original(*args, **kwargs)
                except BaseException as exc:
                    report_error(report, "retrieval", layer, args, kwargs, exc)
                    raise
                finally:
                    under.retrieving = False
                seconds = None if start is None else now() - start
                # the usual case without another frame: a layer seen before, a list, no cache
                if usual and type(out) is list and not self._compare:
                    try:
                        at = places[kwargs[by_name] if by_name in kwargs else args[position]]
                    except (LookupError, TypeError):  # a new layer, a default, an id that is no key
                        at = None
                    if at is not None:
                        if seconds is None:
                            extend((at + _UNTIMED, 0, at + RETURNED, len(out)))
                        else:
                            extend((at + _CALL, seconds, at + RETURNED, len(out)))
                        return out
                safely(seconds, out, hits, args, kwargs)
                return out

            return retrieve

        return make

    def _record(
        self,
        report: Report,
        layer: LayerOf,
        seconds: float | None,
        out: Any,
        hits: Any,
        args: Any,
        kwargs: Any,
    ) -> None:
        at = report.place(resolved(layer(args, kwargs)))
        if at is None:
            return
        returned = returned_entries(out)
        items: list[Any] = [*timed_call(at, _CALL, seconds)]
        if returned is not None:
            items += (at + RETURNED, returned)
        if self._compare:
            cosine = similarity((*args, *kwargs.values()), out)
            if cosine is not None:
                items += (at + LIKENESS, cosine)
        report.extend(items)
        if self._cache is not None:
            self._add_cache(report, self._cache, at, hits)

    def _add_cache(self, report: Report, cache: CacheCounter, at: int, before: Any) -> None:
        hit = cache.read() > before
        cache.live = cache.live or hit
        if not cache.live:
            key = report.stage, at
            cache.waiting[key] = cache.waiting.get(key, 0) + 1
            return
        for key in [key for key in cache.waiting if key[0] is report.stage]:
            waited = cache.waiting.pop(key)
            report.extend((key[1] + CACHE_OPERATIONS, waited, key[1] + CACHE_HITS, 0))
        report.extend((at + (_HIT if hit else _MISS), 0))


def similarity(given: tuple[Any, ...], out: Any) -> float | None:
    """Mean cosine of a query and the entries that it was given; on the host only.

    A query of several positions is compared position by position, where entries came for each of
    them; else every position with every entry.

    Args:
        given: a call's arguments; the query is the first tensor of floats among them.
        out: what was given back.

    Returns:
        the mean over at most 256 positions and 256 of the entries' (of pairs, where each position
        has entries of its own); None where query or entries cannot be told.

    >>> similarity((torch.tensor([1.0, 0.0]), 4), [torch.tensor([0.0, 2.0])])
    0.0
    """
    query = next((x for x in given if isinstance(x, torch.Tensor) and _has_states(x)), None)
    entries = entries_of(out)
    if query is None or entries is None or not len(entries):
        return None
    with torch.no_grad():
        cosine = _of_each(query, entries) if _for_each(query, entries) else _of_all(query, entries)
    # rounding passes 1
    return None if cosine is None or cosine != cosine else max(-1.0, min(1.0, cosine))


def _has_states(x: torch.Tensor) -> bool:
    return x.is_floating_point() and x.device.type == "cpu" and x.ndim > 0 and x.numel() > 0


def _for_each(query: torch.Tensor, entries: Any) -> bool:
    """Whether entries are a tensor that has one, or several, for each of the query's positions."""
    leading = query.shape[:-1]
    return (
        isinstance(entries, torch.Tensor)
        and len(leading) > 0
        and entries.ndim in (query.ndim, query.ndim + 1)
        and entries.shape[: len(leading)] == leading
        and entries.shape[-1] == query.shape[-1]
        and _has_states(entries)
    )


def _of_each(query: torch.Tensor, entries: torch.Tensor) -> float:
    width = query.shape[-1]
    one = query.detach().reshape(-1, 1, width)
    own = entries.detach().reshape(len(one), -1, width)
    own = spread(own.transpose(0, 1), _OF_EACH).transpose(0, 1)
    most = max(1, MOST_LOOKED_AT // own.shape[1])
    one, own = spread(one, most).double(), spread(own, most).double()
    return float(torch.nn.functional.cosine_similarity(one, own, dim=-1).mean())


def _of_all(query: torch.Tensor, entries: Any) -> float | None:
    width = query.shape[-1]
    if isinstance(entries, torch.Tensor):
        found: list[torch.Tensor | None] = [entries]
    else:
        found = [_state_of(entry) for entry in entries[:: -(-len(entries) // MOST_LOOKED_AT)]]
    states = [x for x in found if x is not None and _has_states(x) and x.shape[-1] == width]
    if len(states) < len(found):
        return None
    most = MOST_LOOKED_AT // len(states)
    rows = torch.cat([spread(x.detach().reshape(-1, width), most).double() for x in states])
    positions = spread(query.detach().reshape(-1, width)).double()
    # the mean over all pairs of unit vectors is the product of their means
    one, other = (torch.nn.functional.normalize(x, dim=-1).mean(0) for x in (positions, rows))
    return float(one @ other)


def _state_of(entry: Any) -> torch.Tensor | None:
    """The state of an entry, or of the first of a pair: an entry and its score."""
    fields = fields_of(entry)
    state = state_of(fields)
    if state is None and isinstance(entry, tuple) and entry:
        return state_of(fields_of(entry[0]))
    return state


def retriever(part: Part) -> RetrievalWatch | None:
    """Recognise an object that gives memories back."""
    methods = sorted(name for name in part.offers if name.startswith("retrieve"))
    return RetrievalWatch(part, methods) if methods else None
