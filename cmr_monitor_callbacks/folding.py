"""Adding events to packed statistics, one at a time: the plain way, for what is not hot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import STATISTICS, TIMERS, Store
from cmr_monitor_callbacks.events import STATISTICS_OF
from cmr_monitor_callbacks.histogram import BUCKETS, buckets_of
from cmr_monitor_callbacks.packed import ROW, Packed

STORES: Final[dict[str, tuple[Store, ...]]] = {
    component: tuple(s.store for s in STATISTICS if s.component == component)
    for component in STATISTICS_OF
}
"""How each of a component's statistics is kept, in order."""
FIRST_ROW: Final[dict[str, int]] = {
    component: min(ROW[s.name] for s in STATISTICS if s.component == component)
    for component in STATISTICS_OF
}
"""Where a component's statistics begin; they lie together."""
TIMER_ROWS: Final[dict[str, list[int]]] = {
    component: [i for i, (owner, _) in enumerate(TIMERS) if owner == component]
    for component in STATISTICS_OF
}
"""Histograms of a component, in the order of `events.durations`."""

Durations = list[tuple[int, NDArray[np.float64], NDArray[np.float64] | None]]
"""Row of the histogram, seconds, and how often each counts (None: once)."""


def add_event(packed: Packed, component: str, column: int, fields: Sequence[Any]) -> None:
    """Add one checked event; its durations are not added to the histograms.

    Args:
        packed: added to, in place.
        component: whose event it is.
        column: of the layer.
        fields: as in ``catalogue.RECORDS[component]``; None is no data.
    """
    first = FIRST_ROW[component]
    values = STATISTICS_OF[component](*fields)
    for row, (value, store) in enumerate(zip(values, STORES[component], strict=True), start=first):
        if value is None:
            continue
        packed.samples[row, column] += 1
        if store is Store.GAUGE:
            packed.values[row, column] = value
        else:
            packed.values[row, column] += value


def add_durations(packed: Packed, durations: Durations) -> None:
    """Add durations to histograms, all timers in one pass.

    Args:
        packed: added to, in place.
        durations: at least one, each with at least one duration.
    """
    timers = [timer for timer, _, _ in durations]
    lengths = [len(seconds) for _, seconds, _ in durations]
    flat = np.concatenate([seconds for _, seconds, _ in durations])
    keys = buckets_of(flat) + np.repeat(np.array(timers) * BUCKETS, lengths)
    starts = np.cumsum([0, *lengths])
    counted = np.ones(len(flat))
    for start, (_, seconds, weights) in zip(starts, durations, strict=False):
        if weights is not None:
            counted[start : start + len(seconds)] = weights
    counts = np.bincount(keys, counted, minlength=packed.histograms.size)
    packed.histograms += counts.reshape(packed.histograms.shape).astype(np.int64)
    lowest, highest = packed.extremes[:, 0], packed.extremes[:, 1]
    np.minimum.at(lowest, timers, np.minimum.reduceat(flat, starts[:-1]))
    np.maximum.at(highest, timers, np.maximum.reduceat(flat, starts[:-1]))


def check(value: Any, *, whole: bool, highest: float) -> tuple[float | None, str]:
    """A field's value as a float, or None and what is wrong with it.

    Args:
        value: what was given; None is no data and right.
        whole: whether it must be a whole number.
        highest: the greatest value allowed.
    """
    if value is None:
        return None, ""
    if isinstance(value, (str, bytes)):
        return None, "not a number"
    try:
        number = float(value)
    except Exception:  # whatever a stranger's __float__ raises must not reach their forward
        return None, "not a number"
    if not math.isfinite(number):
        return None, "not finite"
    if number < 0:
        return None, "negative"
    if number > highest:
        return None, f"over {highest:g}"
    if whole and number != math.floor(number):
        return None, "not a whole number"
    return number, ""
