"""Indexed memories: ``add``, ``search`` and ``clear`` over an index, such as a KNN memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr_monitor_callbacks.probes.holding import Holding
from cmr_monitor_callbacks.probes.reading import returned_entries
from cmr_monitor_callbacks.probes.report import compiling, graph_task
from cmr_monitor_callbacks.probes.survey import Part, attributes
from cmr_monitor_callbacks.probes.watches.base import (
    ASKED,
    ATTEMPTED,
    CAPTURED,
    CLEARED,
    CLEARS,
    EVICTED,
    FOUND,
    LOADED,
    RETURNED,
    STORED,
    BaseWatch,
    Ways,
    guarded,
    timed_call,
)
from cmr_monitor_callbacks.probes.wrapping import Call
from cmr_monitor_callbacks.recording.tally import CALL

_CAPTURE, _RETRIEVAL = CALL["capture"], CALL["retrieval"]
_LIMITS = ("max_memories", "max_num_entries", "max_entries", "capacity", "max_size")
_INDICES = ("knns", "indices", "indexes", "index")


class IndexedWatch(BaseWatch):
    """A memory that is searched; its entries are what its indices hold."""

    counts_calls = False
    """Whether what is added is seen; else only what holds now is known."""

    one_layer = True
    """See `BaseWatch.one_layer`."""

    def install(self, ways: Ways) -> None:
        """Wrap its three methods."""
        self._report, kinds = ways.report, ways.report.kinds
        if ways.wrap and kinds & {"capture", "buffer"}:
            self._wrap(ways, "add", self._add, "capture")
        if ways.wrap and "retrieval" in kinds:
            self._wrap(ways, "search", self._search, "retrieval")
        if ways.wrap and "buffer" in kinds:
            self._wrap(ways, "clear", self._clear, "")
        if "buffer" not in kinds:  # what becomes of a state that was added
            ways.report.leave_out("buffer", "moves")
        rows = (ATTEMPTED, CAPTURED, STORED, EVICTED, CLEARED, LOADED, CLEARS)
        ways.report.live(None, *(rows if self.counts_calls else ()))
        if "buffer" in kinds:
            self.source("buffer", "polled", self._index_name() or "index")
            self.source("buffer", "wrapped", "add", "eviction_count")

    def _wrap(self, ways: Ways, name: str, maker: Callable[..., Any], kind: str) -> None:
        section = self.section(kind, name) if kind else None
        made = ways.replace(self._owner(), name, maker, section)
        self.counts_calls |= made and name == "add"
        if made and kind:
            self.source(kind, "wrapped", name)

    def _index_name(self) -> str | None:
        own = attributes(self._owner())
        return next((name for name in _INDICES if name in own), None)

    def _indices(self) -> list[Any]:
        name = self._index_name()
        held = attributes(self._owner()).get(name or "")
        return list(held) if isinstance(held, (list, tuple)) else [held]

    def count(self) -> int:
        """Entries held now, over all indices."""
        return sum(_entries_of(index) for index in self._indices())

    def _limit(self) -> int | None:
        own = attributes(self._owner())
        limit = next((own[name] for name in _LIMITS if type(own.get(name)) is int), None)
        return None if limit is None else limit * len(self._indices())

    def _add(self, original: Call) -> Call:
        report, scope = self._report, self._report.scope
        captures = "capture" in report.kinds
        timed: list[Any] = report.timed if captures else [None]

        def record(seconds: float | None, before: int, args: Any, kwargs: Any) -> None:
            at = report.place(self.layer)
            if at is None:
                return
            offered, stored = self._offered(args, kwargs)
            evicted = before + stored - self.count()
            report.extend((at + ATTEMPTED, offered, at + CAPTURED, offered, at + STORED, stored))
            call = timed_call(at, _CAPTURE, seconds) if captures else ()
            report.extend((*call, at + EVICTED, max(0, evicted)))

        safely = guarded(report, f"{self.path}.add", record)
        blind = report.blind["capture"]

        def add(_: Any, /, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                blind[0] = True
                return original(*args, **kwargs)
            if graph_task() != -1 or scope.now.storing is not None:
                return original(*args, **kwargs)
            before = self.count()
            scope.now.storing = self
            now = timed[0]
            start = None if now is None else now()
            try:
                out = original(*args, **kwargs)
            except BaseException as exc:
                report.error("buffer", self.layer, exc)
                raise
            finally:
                scope.now.storing = None
            safely(None if start is None else now() - start, before, args, kwargs)
            return out

        return add

    def _offered(self, args: Any, kwargs: Any) -> tuple[int, int]:
        """States handed over, and those of them for which there is room in an empty memory."""
        states = next((x for x in (*args, *kwargs.values()) if hasattr(x, "shape")), None)
        if states is None:
            return 1, 1
        shape = tuple(states.shape)
        rows = shape[0] if len(shape) > 2 else 1
        each = shape[1] if len(shape) > 2 else (shape[0] if len(shape) > 1 else 1)
        own = attributes(self._owner())
        limit = next((own[name] for name in _LIMITS if type(own.get(name)) is int), each)
        return rows * each, rows * min(each, limit)

    def _search(self, original: Call) -> Call:
        report, scope = self._report, self._report.scope
        timed = report.timed

        def record(seconds: float | None, out: Any) -> None:
            at = report.place(self.layer)
            if at is None:
                return
            items: list[Any] = [*timed_call(at, _RETRIEVAL, seconds)]
            mask = _mask(out)
            if mask is None:
                returned = returned_entries(out)
                items += () if returned is None else (at + RETURNED, returned)
            elif mask.device.type == "cpu":  # elsewhere it would have to be waited for
                found = int(mask.sum())
                items += (at + RETURNED, found, at + FOUND, found, at + ASKED, mask.numel())
            report.extend(items)

        safely = guarded(report, f"{self.path}.search", record)
        blind = report.blind["retrieval"]

        def search(_: Any, /, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                blind[0] = True
                return original(*args, **kwargs)
            if scope.now.retrieving or graph_task() != -1:
                return original(*args, **kwargs)
            scope.now.retrieving = True
            now = timed[0]
            start = None if now is None else now()
            try:
                out = original(*args, **kwargs)
            except BaseException as exc:
                report.error("retrieval", self.layer, exc)
                raise
            finally:
                scope.now.retrieving = False
            safely(None if start is None else now() - start, out)
            return out

        return search

    def _clear(self, original: Call) -> Call:
        report, scope = self._report, self._report.scope

        def record(before: int) -> None:
            at = report.place(self.layer)
            if at is not None:
                report.extend((at + CLEARED, max(0, before - self.count()), at + CLEARS, 1))

        safely = guarded(report, f"{self.path}.clear", record)

        def clear(_: Any, /, *args: Any, **kwargs: Any) -> Any:
            if scope.now.storing is not None:  # a wipe when full: an eviction
                return original(*args, **kwargs)
            before = self.count()
            out = original(*args, **kwargs)
            safely(before)
            return out

        return clear

    @property
    def counts_moves(self) -> bool:
        """Whether it is known what is stored."""
        return self.counts_calls

    def holds(self) -> dict[Any, int]:
        """Entries held now, under this memory's layer."""
        return {} if self._owner() is None else {self.layer: self.count()}

    def holdings(self) -> dict[Any, Holding]:
        """Entries, capacity and bytes."""
        if self._owner() is None:
            return {}
        count, one = self.count(), self._bytes_of_one()
        return {self.layer: Holding(count, self._limit(), None if one is None else count * one)}

    def _bytes_of_one(self) -> int | None:
        """Bytes of one slot of the store beside the index: rows, slots, and what an entry is."""
        for value in attributes(self._owner()).values():
            shape = getattr(value, "shape", None)
            if shape is not None and len(shape) >= 3 and hasattr(value, "nbytes"):
                slots = shape[0] * shape[1]
                return int(value.nbytes) // slots if slots else None
        return None


def _entries_of(index: Any) -> int:
    """Entries of one index: by the library's own count, else by its length."""
    for held in (index, attributes(index).get("index")):
        total = getattr(held, "ntotal", None)
        if isinstance(total, int):
            return total
    ids = attributes(index).get("ids")
    return len(ids) if ids is not None else 0


def _mask(out: Any) -> torch.Tensor | None:
    parts = out if isinstance(out, tuple) else (out,)
    masks = [x for x in parts if isinstance(x, torch.Tensor) and x.dtype is torch.bool]
    return masks[0] if masks else None


def indexed(part: Part) -> IndexedWatch | None:
    """Recognise a memory with an index."""
    if not {"add", "search"} <= part.offers:
        return None
    own = attributes(part.value)
    if not any(name in own for name in _LIMITS) or not any(name in own for name in _INDICES):
        return None
    # the index of one row is not the memory: that holds the entries themselves
    whole = any(len(getattr(value, "shape", ())) >= 3 for value in own.values())
    return IndexedWatch(part) if whole else None
