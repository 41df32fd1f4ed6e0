"""Adapters: how a family of memories is recognised. The first that recognises an object has it.

A package of its own adds a family through the entry point group ``cmr_monitor_callbacks.adapters``:
a function from a `Part` to a `Watch`, or to None where it is something else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points

from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import Watch
from cmr_monitor_callbacks.probes.watches.buffer import buffer
from cmr_monitor_callbacks.probes.watches.capture import capture, scorer
from cmr_monitor_callbacks.probes.watches.fast_weights import fast_weights
from cmr_monitor_callbacks.probes.watches.fifo import fifo
from cmr_monitor_callbacks.probes.watches.indexed import indexed
from cmr_monitor_callbacks.probes.watches.reconstruction import reconstructor
from cmr_monitor_callbacks.probes.watches.retrieval import retriever

GROUP = "cmr_monitor_callbacks.adapters"
Adapter = Callable[[Part], Watch | None]

MEMORIES: tuple[Adapter, ...] = (
    indexed,
    fast_weights,
    buffer,
    reconstructor,
    scorer,
    retriever,
    fifo,
)
"""What an object is, at most one of these."""
BESIDES: tuple[Adapter, ...] = (capture,)
"""What it may be as well."""


@lru_cache(maxsize=1)
def installed() -> tuple[Adapter, ...]:
    """Adapters of other packages, which come before our own.

    Raises:
        ImportError: one cannot be loaded.
    """
    return tuple(entry.load() for entry in entry_points(group=GROUP))


def recognise(part: Part) -> list[Watch]:
    """The watches for an object; none where it is nothing that a monitor knows."""
    found: list[Watch] = []
    for adapter in (*installed(), *MEMORIES):
        watch = adapter(part)
        if watch is not None:
            found.append(watch)
            break
    found += [watch for adapter in BESIDES if (watch := adapter(part)) is not None]
    return found
