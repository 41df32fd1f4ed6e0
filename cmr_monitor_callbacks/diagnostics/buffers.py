"""The health of buffers, by what is counted: how full they are, what leaves them and when."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cmr_monitor_callbacks.diagnostics.finding import Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.diagnostics.setting_up import ENOUGH_STATES, ENOUGH_STEPS

LONG = 200
"""Steps after which a memory should have begun to fill."""
HARDLY = 0.05
"""Share of a capacity; at that rate it is full after 20 times as long a run."""
FULL = 0.99
REFUSES = 0.5
"""Share of the captured states that is stored; the preset's alert fires under it, too."""
OVER = 1.02
YOUNG = 2.0
"""Steps; what is stored in a step is read in the next at the earliest, so this is one read."""
ENOUGH_EVICTED = 100


def capacity_never_reached(m: Material) -> Iterator[Hit]:
    """A layer's capacity is far more than it will hold."""
    for layer in m.layers:
        rate = m.value("utilization_rate", layer)
        if m.steps >= LONG and rate < HARDLY:
            text = f"after {m.steps} steps it holds {rate:.1%} of its capacity"
            yield Hit(text, layer, {"utilization_rate": rate, "steps": m.steps})


def buffer_refuses(m: Material) -> Iterator[Hit]:
    """A layer is full and refuses most of what it is handed."""
    for layer in m.layers:
        rate, stored = m.value("utilization_rate", layer), m.value("storage_efficiency", layer)
        captured = m.count("states_captured", layer)
        if captured >= ENOUGH_STATES / 10 and rate >= FULL and stored < REFUSES:
            text = f"it is full and took {stored:.0%} of {captured:.0f} captured states"
            yield Hit(text, layer, {"storage_efficiency": stored, "utilization_rate": rate})


def over_capacity(m: Material) -> Iterator[Hit]:
    """A layer holds more than its capacity: nothing bounds it."""
    for layer in m.layers:
        rate = m.value("utilization_rate", layer)
        if rate > OVER:
            yield Hit(f"it holds {rate:.0%} of its capacity", layer, {"utilization_rate": rate})


def entries_evicted_young(m: Material) -> Iterator[Hit]:
    """Entries are dropped before they can be of use."""
    for layer in m.layers:
        age, evicted = age_at_eviction(m, layer), m.count("eviction_count", layer)
        if m.steps >= ENOUGH_STEPS and evicted >= ENOUGH_EVICTED and age < YOUNG:
            text = f"an entry is dropped after {age:.1f} steps on average ({evicted:.0f} were)"
            yield Hit(text, layer, {"age_at_eviction": age, "eviction_count": evicted})


def age_at_eviction(m: Material, layer: object) -> float:
    """Mean steps that an entry stays, by Little's law: entries held / entries leaving per step.

    Exact in the long run of a layer whose size stays; of a growing one it is an upper bound.
    """
    held, evicted = m.value("total_entries", layer), m.count("eviction_count", layer)
    return held / (evicted / m.steps) if evicted and m.steps else math.nan


def books_do_not_balance(m: Material) -> Iterator[Hit]:
    """Entries came or went uncounted: what is counted of a layer is wrong."""
    for balance in m.balances:
        gap = balance.gap
        if gap:
            text = f"{abs(gap)} entries {'came' if gap > 0 else 'went'} and nobody counted them"
            yield Hit(text, balance.layer, balance.to_dict())


def probe_disagrees(m: Material) -> Iterator[Hit]:
    """What is said of a buffer is not what it holds."""
    for one in m.entries if m.alone else ():
        told = m.value("total_entries", one.layer)
        if m.steps and not math.isnan(told) and told != one.count:
            text = f"{told:.0f} entries were told of, and {one.path} holds {one.count}"
            yield Hit(text, one.layer, {"told": told, "held": one.count, "path": one.path})
