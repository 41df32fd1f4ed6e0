"""How the reference's events reach the package: as arguments of Metric.update and of probes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.reference import (
    Buffer,
    Capture,
    Event,
    Layer,
    Reconstruction,
    Retrieval,
    Step,
    evaluate,
    get,
)

GAUGES = ("total_entries", "capacity", "utilization_rate", "memory_size_mb")
Table = Mapping[tuple[str, Layer], float]


def same(value: float, expected: float, rel: float = 1e-9) -> bool:
    if math.isnan(expected):
        return math.isnan(value)
    return math.isclose(value, expected, rel_tol=rel, abs_tol=1e-300)


def tolerance(name: str) -> float:
    """Quantiles are within 2 % (METRICS.md); all else is exact but for the order of the sums."""
    return 0.0201 if name.endswith(("_p50", "_p95", "_p99")) else 1e-9


def differences(got: Table, expected: Table) -> dict[tuple[str, Layer], tuple[float, float]]:
    """(got, expected) by name and layer, wherever they differ."""
    return {
        key: (got.get(key, math.nan), value)
        for key, value in expected.items()
        if not same(got.get(key, math.nan), value, tolerance(key[0]))
    }


def arguments(event: Event) -> tuple[str, dict[str, Any]]:
    """A Metric class's component, and the arguments of its update that say the same."""
    if isinstance(event, Capture):
        names = ("layer", "attempted", "captured", "stored", "seconds", "considered")
        return "capture", {name: getattr(event, name) for name in names}
    if isinstance(event, Reconstruction):
        names = ("layer", "memories_used", "quality", "seconds")
        return "reconstruction", {name: getattr(event, name) for name in names}
    if isinstance(event, Retrieval):
        names = ("layer", "requested", "returned", "hits", "seconds", "quality")
        return "retrieval", {name: getattr(event, name) for name in names}
    if isinstance(event, Buffer):
        fields = ("layer", "entries", "capacity", "nbytes", "evicted", "cleared", "loaded")
        return "buffer", {name: getattr(event, name) for name in fields}
    raise TypeError(event)


def step_arguments(event: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of LatencyMetric.update and of ThroughputMetric.update."""
    timing = {
        "step": event.seconds,
        "data_wait": event.data_wait,
        "forward": event.forward,
        "backward": event.backward,
        "optimizer": event.optimizer,
        "passes": event.forward_passes,
    }
    amounts = {
        "samples": event.samples,
        "tokens": event.tokens,
        "step": event.seconds,
        "data_wait": event.data_wait,
    }
    return timing, amounts


def split(rng: np.random.Generator, events: Sequence[Event], parts: int) -> list[list[Event]]:
    """The events in order, cut at random into so many stretches."""
    cuts = sorted(rng.integers(0, len(events) + 1, parts - 1).tolist())
    return [list(events[a:b]) for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]


def layers_of(events: Iterable[Event]) -> list[int | str]:
    """Layers by first appearance."""
    named = [e.layer for e in events if not isinstance(e, Step)]
    return [layer for layer in dict.fromkeys(named) if layer is not None]


def over_ranks(ranks: Sequence[Sequence[Event]]) -> dict[tuple[str, Layer], float]:
    """The reference over ranks: events together, gauges and rates added, forward time the max."""
    together = [event for events in ranks for event in events]
    result = dict(evaluate(together))
    gauges = {name for name, layer in result if name in GAUGES}
    added = evaluate(_added_gauges(ranks))
    for name, layer in list(result):
        if name in gauges:
            result[name, layer] = get(added, name, layer)
    alone = [evaluate(events) for events in ranks]
    for name in ("throughput", "tokens_per_second"):
        rates = [get(one, name) for one in alone if not math.isnan(get(one, name))]
        result[name, None] = math.fsum(rates) if rates else math.nan
    totals = [get(one, "total_forward_time") for one in alone]
    result["total_forward_time", None] = float(np.fmax.reduce(totals))
    return result


def _added_gauges(ranks: Sequence[Sequence[Event]]) -> list[Event]:
    """Looks at the buffer that leave the ranks' last gauges added up, slot by slot."""
    last: dict[tuple[int, Layer], dict[str, int]] = {}
    held: set[Layer] = set()
    for rank, events in enumerate(ranks):
        for event in events:
            if isinstance(event, Buffer):
                known = last.setdefault((rank, event.layer), {})
                for field in ("entries", "capacity", "nbytes"):
                    if getattr(event, field) is not None:
                        known[field] = getattr(event, field)
                held |= {event.layer} if event.entries else set()
    looks: list[Event] = [Buffer(layer, 1, None) for layer in held]
    for layer in dict.fromkeys(slot for _, slot in last):
        given = [known for (_, slot), known in last.items() if slot == layer]
        fields = [
            sum(known[f] for known in given if f in known)
            if any(f in known for known in given)
            else None
            for f in ("entries", "capacity", "nbytes")
        ]
        looks.append(Buffer(layer, *fields))
    return looks
