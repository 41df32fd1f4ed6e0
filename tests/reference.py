"""The numbers of METRICS.md worked out the slow way, to hold the package against.

It shares no code with the package and must not. ``evaluate`` gives the numbers of NAMES for the
whole (layer None) and those of LAYER_NAMES for each layer that an event names; no data is NaN.
A *slot* is a layer, or None: the events that name no layer. The whole is all slots together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

Layer: TypeAlias = int | str | None
Row: TypeAlias = dict[str, float]
Number = TypeVar("Number", int, float)
NAN = math.nan


@dataclass(frozen=True)
class Capture:
    layer: Layer
    attempted: int | None
    captured: int | None
    stored: int | None
    seconds: float | None = None
    considered: int | None = None


@dataclass(frozen=True)
class Reconstruction:
    layer: Layer
    memories_used: int | float | None
    quality: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Retrieval:
    layer: Layer
    requested: int | None
    returned: int | None
    hits: int | None = None
    seconds: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class Buffer:
    layer: Layer
    entries: int | None
    capacity: int | None
    nbytes: int | None = None
    evicted: int = 0
    cleared: int = 0
    loaded: int = 0


@dataclass(frozen=True)
class Error:
    layer: Layer


@dataclass(frozen=True)
class Step:
    seconds: float
    data_wait: float | None
    forward: float | None
    backward: float | None
    optimizer: float | None
    samples: int | None
    tokens: int | None
    forward_passes: int = 1


Event: TypeAlias = Capture | Reconstruction | Retrieval | Buffer | Error | Step
Result: TypeAlias = dict[tuple[str, Layer], float]

# Ratios whose two sides may come from different slots: (numerator, denominator).
RATIOS = {
    "capture_efficiency": ("states_captured", "states_attempted"),
    "storage_efficiency": ("states_stored", "states_captured"),
    "selection_rate": ("states_attempted", "states_considered"),
    "eviction_rate": ("eviction_count", "states_stored"),
}


def get(result: Result, name: str, layer: Layer = None) -> float:
    """The number, or NaN where there is none; a name that the reference lacks is a KeyError."""
    if name not in NAMES:
        raise KeyError(name)
    return result.get((name, layer), NAN)


def evaluate(events: Sequence[Event]) -> Result:
    slots: dict[Layer, list[Event]] = {}
    for event in events:
        slots.setdefault(None if isinstance(event, Step) else event.layer, []).append(event)
    sums = {layer: _sums(own) for layer, own in slots.items()}
    rows = {layer: sums[layer] | _ratios([sums[layer]]) | _gauges(slots[layer]) for layer in slots}

    whole = _sums(events) | _ratios(list(sums.values())) | _gauges(events)
    whole |= _quantiles(events) | _steps(events)
    # A slot that gives only one side has no rejected, so this is not captured - stored here.
    whole["states_rejected"] = _add(own["states_rejected"] for own in sums.values())
    calls = [whole[n] for n in ("capture_calls", "reconstruction_calls", "total_retrievals")]
    passes = _add(e.forward_passes for e in events if isinstance(e, Step))
    whole["error_rate"] = _divide(whole["error_count"], _add([*calls, passes]))
    rows[None] = whole
    return {(name, layer): value for layer, row in rows.items() for name, value in row.items()}


def _sums(events: Sequence[Event]) -> Row:
    """Sums, and means whose two sides come from the same events; NaN for what none gave."""
    cap = [e for e in events if isinstance(e, Capture)]
    rec = [e for e in events if isinstance(e, Reconstruction)]
    ret = [e for e in events if isinstance(e, Retrieval)]
    buf = [e for e in events if isinstance(e, Buffer)]
    captured, stored = _add(e.captured for e in cap), _add(e.stored for e in cap)
    used = [e.memories_used for e in rec if e.memories_used is not None]
    useful = sum(1 for memories in used if memories > 0)
    cached = sum(e.requested or 0 for e in ret if e.hits is not None)
    timed = [(e.seconds, e.requested) for e in ret if e.requested and e.seconds is not None]
    return {
        "states_considered": _add(e.considered for e in cap),
        "states_attempted": _add(e.attempted for e in cap),
        "states_captured": captured,
        "states_stored": stored,
        "states_rejected": captured - stored,
        "capture_calls": _add(1 for _ in cap),
        "avg_capture_time": _mean(e.seconds for e in cap),
        "reconstruction_calls": _add(1 for _ in rec),
        "total_reconstructions": float(useful) if used else NAN,
        "memories_used": _divide(_add(used), useful),
        "reconstruction_quality": _mean(e.quality for e in rec),
        "avg_reconstruction_time": _mean(e.seconds for e in rec),
        "total_retrievals": _add(e.requested for e in ret),
        "entries_retrieved": _add(e.returned for e in ret),
        "cache_hits": _add(e.hits for e in ret),
        "cache_hit_rate": _divide(_add(e.hits for e in ret), cached),
        "avg_retrieval_time": _divide(_add(s for s, _ in timed), sum(n for _, n in timed)),
        "retrieval_quality": _mean(e.quality for e in ret),
        "eviction_count": _add(e.evicted for e in buf),
        "states_cleared": _add(e.cleared for e in buf),
        "states_loaded": _add(e.loaded for e in buf),
        # Any watched call can fail, so any event is a live source of errors: 0, not NaN.
        "error_count": _add(1 if isinstance(e, Error) else 0 for e in events),
    }


def _ratios(slots: Sequence[Row]) -> Row:
    """Ratios of the sums over the slots that have both sides."""
    row: Row = {}
    for name, (above, below) in RATIOS.items():
        both = [s for s in slots if not math.isnan(s[above] + s[below])]
        row[name] = _divide(_add(s[above] for s in both), _add(s[below] for s in both))
    return row


def _last(buffers: Sequence[Buffer], field: str) -> dict[Layer, float]:
    """The last given value of each slot that gave one."""
    given = [(e.layer, getattr(e, field)) for e in buffers]
    return {layer: float(value) for layer, value in given if value is not None}


def _gauges(events: Sequence[Event]) -> Row:
    """The gauges of the whole; from the events of one layer alone, that layer's."""

    def over_layers(gauge: Mapping[Layer, float]) -> float:
        layered = [value for layer, value in gauge.items() if layer is not None]
        return _add(layered) if layered else gauge.get(None, NAN)

    buffers = [e for e in events if isinstance(e, Buffer)]
    entries, capacity = _last(buffers, "entries"), _last(buffers, "capacity")
    held = {e.layer for e in buffers if e.entries is not None and e.entries > 0}
    limited = [layer for layer in capacity if layer is not None]
    counted = [layer for layer in limited if layer in held] or limited
    limit, bounded = _add(map(capacity.get, counted)), _add(map(entries.get, limited))
    if None in capacity:
        # A layer that held entries and names no limit makes the layers' limits no bound.
        alone = not limited or any(layer not in capacity for layer in held - {None})
        limit = capacity[None] if alone else min(limit, capacity[None])
        bounded = over_layers(entries)
    return {
        "total_entries": over_layers(entries),
        "capacity": limit,
        "utilization_rate": _divide(bounded, limit),
        "memory_size_mb": over_layers(_last(buffers, "nbytes")) / 2**20,
    }


def _quantiles(events: Sequence[Event]) -> Row:
    """Lower empirical quantiles; a retrieval of n operations counts n times, at its n-th part."""
    seconds: dict[str, list[float]] = {"capture": [], "reconstruction": [], "retrieval": []}
    for e in events:
        if isinstance(e, Capture) and e.seconds is not None:
            seconds["capture"].append(e.seconds)
        if isinstance(e, Reconstruction) and e.seconds is not None:
            seconds["reconstruction"].append(e.seconds)
        if isinstance(e, Retrieval) and e.seconds is not None and e.requested:
            seconds["retrieval"] += [e.seconds / e.requested] * e.requested
    return {  # the place is int(q * (n - 1)), in whole numbers
        f"{kind}_time_p{p}": sorted(given)[p * (len(given) - 1) // 100] if given else NAN
        for kind, given in seconds.items()
        for p in (50, 95, 99)
    }


def _steps(events: Sequence[Event]) -> Row:
    def wall(chosen: Iterable[Step]) -> float:
        return _add(s.seconds + (s.data_wait or 0.0) for s in chosen)

    steps = [e for e in events if isinstance(e, Step)]
    forward = _add(s.forward for s in steps)
    per_pass = _divide(forward, sum(s.forward_passes for s in steps if s.forward is not None))
    samples, tokens = _add(s.samples for s in steps), _add(s.tokens for s in steps)
    return {
        "step_time": _mean(s.seconds for s in steps),
        "data_wait": _mean(s.data_wait for s in steps),
        "avg_forward_time": per_pass,
        "avg_latency": per_pass,
        "total_forward_time": forward,
        "backward_time": _mean(s.backward for s in steps),
        "optimizer_time": _mean(s.optimizer for s in steps),
        "throughput": _divide(samples, wall(s for s in steps if s.samples is not None)),
        "tokens_per_second": _divide(tokens, wall(s for s in steps if s.tokens is not None)),
        "tokens": tokens,
        "batch_size": _mean(s.samples for s in steps),
    }


def _add(values: Iterable[float | None]) -> float:
    """The sum of those given; NaN where none is."""
    given = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(given) if given else NAN


def _divide(above: float, below: float) -> float:
    return NAN if below == 0 else above / below


def _mean(values: Iterable[float | None]) -> float:
    given = [value for value in values if value is not None]
    return _divide(_add(given), len(given))


LAYER_NAMES = (*_sums([]), *RATIOS, *_gauges([]))
NAMES = (*LAYER_NAMES, *_quantiles([]), *_steps([]), "error_rate")


def random_events(rng: np.random.Generator, n: int, layers: Sequence[int | str]) -> list[Event]:
    """Valid events of every kind, with Nones, zeros and now and then no layer.

    considered >= attempted >= captured >= stored >= 0, hits <= requested, quality in 0..1, seconds
    log-uniform in 2e-6..10 (per operation and pass too), a step as long as its parts or longer.
    """
    return [_random_event(rng, layers) for _ in range(n)]


def _random_event(rng: np.random.Generator, layers: Sequence[int | str]) -> Event:
    def count(high: int) -> int:
        return 0 if rng.random() < 0.1 else int(rng.integers(0, high + 1))

    def maybe(value: Number) -> Number | None:
        return None if rng.random() < 0.2 else value

    def lasting(low: float = 2e-6, high: float = 10.0) -> float:
        return float(np.clip(math.exp(rng.uniform(math.log(low), math.log(high))), low, high))

    layer = None if rng.random() < 0.15 or not layers else layers[int(rng.integers(len(layers)))]
    rated = float(rng.choice([0.0, 1.0, rng.random()]))
    kind = rng.choice(6, p=[0.25, 0.2, 0.2, 0.15, 0.05, 0.15])
    if kind == 0:
        attempted = count(considered := count(2000))
        stored = count(captured := count(attempted))
        taken = maybe(attempted), maybe(captured), maybe(stored)
        return Capture(layer, *taken, maybe(lasting()), maybe(considered))
    if kind == 1:
        used: int | float = count(64) + (0.5 if rng.random() < 0.2 else 0)
        return Reconstruction(layer, used, maybe(rated), maybe(lasting()))
    if kind == 2:
        asked = count(16)
        hits, seconds = maybe(count(asked)), maybe(lasting(2e-6 * max(asked, 1)))
        return Retrieval(layer, asked, count(8 * asked), hits, seconds, maybe(rated))
    if kind == 3:
        limit = count(2000)
        entries = count(limit + limit // 10)
        held = maybe(entries), maybe(limit), maybe(entries * 3072)
        return Buffer(layer, *held, count(50), count(50), count(50))
    if kind == 4:
        return Error(layer)
    passes = int(rng.integers(1, 5))
    forward, backward, optimizer = (maybe(lasting(2e-6 * passes, 3.0)) for _ in range(3))
    parts = (forward or 0.0) + (backward or 0.0) + (optimizer or 0.0)
    seen = maybe(count(64)), maybe(count(32768)), passes
    return Step(lasting(max(2e-6, parts)), maybe(lasting()), forward, backward, optimizer, *seen)
