"""The health of buffers, by their entries: age, access, relevance, duplicates, what is broken."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from cmr_monitor_callbacks.diagnostics.finding import Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.entries import Array, LayerEntries

ENOUGH = 32
"""Entries of a sample: of fewer a share is too rough (its standard error is 9 % at a half)."""
SAME = 0.9999
"""Cosine at which two states are one: 0.8 degrees apart."""
DUPLICATES = 0.5
EMPTY = 0.1
UNREAD = 0.95
MISSED = 0.25
"""Share of the evicted entries; states of one text are alike by chance, in a few of 100."""
FROZEN = 0.5
FROZEN_FOR = 20.0


def entries_nonfinite(m: Material) -> Iterator[Hit]:
    """Entries hold NaN or infinity, and whoever reads them gets it."""
    for one in m.entries:
        if one.states is not None and len(one.states):
            share = float((~np.isfinite(one.states)).any(axis=1).mean())
            if share:
                text = f"{share:.1%} of the entries that were looked at are not finite"
                yield Hit(text, one.layer, {"share": share, **_sample(one)})


def entries_empty(m: Material) -> Iterator[Hit]:
    """Entries are zero."""
    for one in m.entries:
        if one.states is not None and len(one.states) >= ENOUGH:
            share = float((one.states == 0).all(axis=1).mean())
            if share > EMPTY:
                text = f"{share:.0%} of the entries that were looked at are zero"
                yield Hit(text, one.layer, {"share": share, **_sample(one)})


def duplicate_entries(m: Material) -> Iterator[Hit]:
    """Many entries are the same: they take room and say nothing new."""
    for one in m.entries:
        nearest = nearest_cosine(one)
        if nearest is not None and len(nearest) >= ENOUGH:
            share = float((nearest >= SAME).mean())
            if share > DUPLICATES:
                text = f"{share:.0%} of the entries have a twin (cosine at least {SAME})"
                yield Hit(text, one.layer, {"share": share, "cosine": SAME, **_sample(one)})


def relevance_flat(m: Material) -> Iterator[Hit]:
    """All entries are as relevant: by relevance none can be chosen."""
    for one in m.entries:
        values = one.relevance
        if values is not None and len(values) >= ENOUGH and np.ptp(values) <= 1e-6:
            text = f"all {len(values)} entries that were looked at have relevance {values[0]:.3g}"
            yield Hit(text, one.layer, {"relevance": float(values[0]), **_sample(one)})


def entries_never_read(m: Material) -> Iterator[Hit]:
    """Old entries that nobody ever read: their memory is wasted."""
    for one in m.entries:
        unread = never_read_of_old(one)
        if unread is None or m.count("total_retrievals") == 0:
            continue
        share, count = unread
        if count >= ENOUGH and share >= UNREAD:
            text = f"{share:.0%} of the older half of the entries was never read"
            yield Hit(text, one.layer, {"share": share, "looked_at": count})


def memory_frozen(m: Material) -> Iterator[Hit]:
    """A layer took nothing new for most of its life."""
    now = _now(m)
    for one in m.entries:
        if one.stored_at is None or len(one.stored_at) < ENOUGH:
            continue
        since, life = now - one.stored_at.max(), now - one.stored_at.min()
        if since >= FROZEN_FOR and since >= FROZEN * life:
            text = (
                f"its newest entry came {since:.0f} ago, its oldest {life:.0f} (the model's time)"
            )
            yield Hit(text, one.layer, {"newest": since, "oldest": life, **_sample(one)})


def evicted_then_missed(m: Material) -> Iterator[Hit]:
    """What a layer evicts is soon stored again: it was dropped too early."""
    for layer, missed in m.missed.items():
        share = missed.missed / missed.gone if missed.gone else 0.0
        if missed.gone >= ENOUGH and share >= MISSED:
            text = f"of {missed.gone} entries that went {share:.0%} were stored again later"
            yield Hit(text, layer, {"share": share, **vars(missed)})


def nearest_cosine(one: LayerEntries) -> Array | None:
    """Cosine of each sampled entry with the one that is most like it, shape ``(sampled,)``."""
    if one.states is None or len(one.states) < 2:
        return None
    states = one.states[np.isfinite(one.states).all(axis=1)]
    norms = np.linalg.norm(states, axis=1)
    states = states[norms > 0] / norms[norms > 0, None]
    if len(states) < 2:
        return None
    cosine = states @ states.T
    np.fill_diagonal(cosine, -1.0)
    nearest: Array = cosine.max(axis=1)
    return nearest


def never_read_of_old(one: LayerEntries) -> tuple[float, int] | None:
    """Share of the older half of the sample that was never read, and how many that half is."""
    unread = one.never_read
    if unread is None or not len(unread):
        return None
    order = np.arange(len(unread)) if one.stored_at is None else np.argsort(one.stored_at)
    old = order[: len(unread) // 2]
    return (float(unread[old].mean()), len(old)) if len(old) else None


def _now(m: Material) -> float:
    times = [
        t.max() for e in m.entries for t in (e.stored_at, e.read_at) if t is not None and len(t)
    ]
    return float(max(times, default=0.0))


def _sample(one: LayerEntries) -> dict[str, Any]:
    return {"entries": one.count, "looked_at": one.sampled, "path": one.path}


def distributions(m: Material) -> dict[Hashable, dict[str, Any]]:
    """By layer: how old, relevant, read and alike entries are; what is not known is left out."""
    now = _now(m)
    out: dict[Hashable, dict[str, Any]] = {}
    for one in m.entries:
        nearest, unread = nearest_cosine(one), one.never_read
        told: dict[str, Any] = {"capacity": one.capacity, **_sample(one)}
        columns = {
            "relevance": one.relevance,
            "age": None if one.stored_at is None else now - one.stored_at,
            "since_read": None if one.read_at is None else now - one.read_at,
            "accesses": one.accesses,
            "nearest_cosine": nearest,
        }
        told |= {name: _quantiles(x) for name, x in columns.items() if x is not None and len(x)}
        if nearest is not None:
            told["duplicate_share"] = float((nearest >= SAME).mean())
        if unread is not None and len(unread):
            told["never_read_share"] = float(unread.mean())
        out[one.layer] = told
    return out


def _quantiles(values: Array) -> dict[str, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    low, middle, high = np.quantile(finite, (0.1, 0.5, 0.9))
    return {
        "min": float(finite.min()),
        "p10": float(low),
        "p50": float(middle),
        "p90": float(high),
        "max": float(finite.max()),
    }
