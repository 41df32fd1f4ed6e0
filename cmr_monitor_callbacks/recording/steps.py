"""Steps to statistics: a few dozen records of ten numbers, which plain Python adds up fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import RECORDS
from cmr_monitor_callbacks.folding import FIRST_ROW, TIMER_ROWS, Durations
from cmr_monitor_callbacks.packed import ROW, Packed

STEP_FIELDS: Final = (*RECORDS["timing"], "samples", "tokens")
"""What is recorded of a step: times in seconds, forward passes, and how much was in its batches.
None: not known, or, of a device's time, not yet."""
STRIDE: Final = len(STEP_FIELDS)
_FORWARD, _PASSES, _SAMPLES, _TOKENS = (
    STEP_FIELDS.index(name) for name in ("forward", "passes", "samples", "tokens")
)
_WAIT: Final = STEP_FIELDS.index("data_wait")
_WAITED: Final = ROW["waited_wall_seconds"]
_TIMES: Final = range(_PASSES)
_TIMED: Final = ROW["passes_timed"]
_FIRST, _LAST = FIRST_ROW["timing"], FIRST_ROW["throughput"] + 4


def add_steps(packed: Packed, items: Sequence[Any], durations: Durations) -> None:
    """Add steps that the monitor timed itself.

    Args:
        packed: added to, in place.
        items: steps one after the other, each with `STEP_FIELDS`.
        durations: given the steps' durations.
    """
    columns = [items[field::STRIDE] for field in range(STRIDE)]
    given = [[x for x in c if x is not None] if None in c else c for c in columns]
    passes = columns[_PASSES]
    # a step's time and the wait before it; none where steps are not timed
    walls = [(s or 0.0) + (w or 0.0) for s, w in zip(columns[0], columns[_WAIT], strict=True)]
    sums = [float(sum(values)) for values in given]
    counts = [len(values) for values in given]
    seconds = [_beside(columns[field], walls, counts[field]) for field in (_SAMPLES, _TOKENS)]
    order = (_PASSES, _PASSES, *_TIMES, _SAMPLES, _TOKENS)
    packed.values[_FIRST:_LAST, 0] += (*(sums[field] for field in order), *seconds)
    packed.samples[_FIRST:_LAST, 0] += [counts[field] for field in (*order, _SAMPLES, _TOKENS)]
    if counts[_FORWARD] < len(passes):  # a device's time comes later
        pairs = zip(passes, columns[_FORWARD], strict=True)
        packed.values[_TIMED, 0] -= sum(n for n, seconds in pairs if seconds is None)
        packed.samples[_TIMED, 0] -= len(passes) - counts[_FORWARD]
    waited = _beside(columns[_WAIT], walls, counts[_WAIT])
    packed.values[_WAITED, 0] += waited
    packed.samples[_WAITED, 0] += counts[_WAIT]
    for timer, field in zip(TIMER_ROWS["timing"], _TIMES, strict=False):
        if not counts[field]:
            continue
        if field == _FORWARD:
            timed = [(t, n) for t, n in zip(columns[field], passes, strict=True) if t is not None]
            each = [total / n for total, n in timed]
            weights = np.array([n for _, n in timed], dtype=np.float64)
            durations.append((timer, np.array(each), weights))
        else:
            durations.append((timer, np.array(given[field]), None))


def _beside(amounts: Sequence[Any], walls: Sequence[float], known: int) -> float:
    """Wall seconds of the steps whose amount is known."""
    if known == len(walls):
        return sum(walls)
    return sum(w for amount, w in zip(amounts, walls, strict=True) if amount is not None)
