"""Retrieval: methods that give entries back, of a buffer or of a retriever."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

from cmr_monitor_callbacks.probes.reading import LayerOf, fast_layer, layer_of, returned_entries
from cmr_monitor_callbacks.probes.report import Report, compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import (
    CACHE_HITS,
    CACHE_OPERATIONS,
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
        timed = report.timed
        cache, extend, places = self._cache, ways.report.extend, ways.report.places
        called = method(self._owner(), name)
        layer = layer_of(called, self.unnamed_layer)
        by_name, position, default = fast_layer(called)
        blind = report.blind["retrieval"]
        safely = guarded(report, f"{self.path}.{name}", partial(self._record, report, layer))

        def make(original: Call) -> Call:
            def retrieve(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                if compiling():
                    blind[0] = True
                    return original(*args, **kwargs)
                under = scope.now
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
                if cache is None and type(out) is list:
                    try:
                        if by_name in kwargs:
                            at = places.get(kwargs[by_name])
                        else:
                            at = places.get(args[position] if position < len(args) else default)
                    except TypeError:  # an id that cannot be a key
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
        call = timed_call(at, _CALL, seconds)
        report.extend(call if returned is None else (*call, at + RETURNED, returned))
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


def retriever(part: Part) -> RetrievalWatch | None:
    """Recognise an object that gives memories back."""
    methods = sorted(name for name in part.offers if name.startswith("retrieve"))
    return RetrievalWatch(part, methods) if methods else None
