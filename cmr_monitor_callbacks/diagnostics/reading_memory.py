"""Retrieval and reconstruction: whether what is stored is read, and whether that does a thing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping

import numpy as np

from cmr_monitor_callbacks.diagnostics.finding import Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.diagnostics.setting_up import ENOUGH_STEPS
from cmr_monitor_callbacks.entries import Array

ENOUGH_OPERATIONS = 200
USELESS = 0.01
"""Share of a cache's operations that it answers; under it, looking costs more than it saves."""
DEAD_STEPS = 50
UNEARNED = 0.1
"""Share of the reads / share of the memory, of a layer that does not earn it."""
WEIGHS = 0.1
"""Share of the memory under which a layer is not worth a word."""
WINDOWS = 12
"""Windows in each third of which (4) a median is a number."""
GREW = 2.0
FOLLOWS = 0.9
"""Rank correlation; of 12 unrelated windows it is reached once in 10,000 times."""
MATTERS = 0.2
"""Share of a step's time."""
NOTHING = 1e-6
"""1 - cosine of states before and after: below what float32 resolves of a cosine."""
WORSE = 0.5
SURE = 2.0
"""Standard errors: by chance alone a difference passes it once in 40 times."""
ENOUGH_BATCHES = 8


def retrieval_returns_nothing(m: Material) -> Iterator[Hit]:
    """A layer holds entries, is asked, and gives nothing back."""
    for layer in m.layers:
        asked, given = m.count("total_retrievals", layer), m.value("entries_retrieved", layer)
        held = m.value("total_entries", layer)
        if asked >= ENOUGH_OPERATIONS / 10 and given == 0 and held > 0 and m.steps >= ENOUGH_STEPS:
            text = f"{asked:.0f} retrievals gave nothing back; {held:.0f} entries are there"
            yield Hit(text, layer, {"total_retrievals": asked, "total_entries": held})


def retrieval_hits_nothing(m: Material) -> Iterator[Hit]:
    """None of the slots that were asked for was found."""
    for layer in m.layers:
        rate, asked = m.value("retrieval_hit_rate", layer), m.count("total_retrievals", layer)
        if rate == 0 and asked >= ENOUGH_OPERATIONS and m.value("total_entries", layer) > 0:
            text = f"in {asked:.0f} retrievals no slot was found"
            yield Hit(text, layer, {"retrieval_hit_rate": 0.0, "total_retrievals": asked})


def cache_useless(m: Material) -> Iterator[Hit]:
    """The cache answers next to nothing."""
    rate, asked = m.value("cache_hit_rate"), m.count("total_retrievals")
    if asked >= ENOUGH_OPERATIONS and rate < USELESS:
        text = f"the cache answered {rate:.2%} of {asked:.0f} retrievals"
        yield Hit(text, None, {"cache_hit_rate": rate, "total_retrievals": asked})


def layer_not_worth_its_memory(m: Material) -> Iterator[Hit]:
    """A layer has much of the memory, and little of it is read."""
    for layer, row in earnings(m).items():
        memory, reads = row["memory_share"], row["read_share"]
        if memory is None or reads is None or memory < WEIGHS or m.steps < DEAD_STEPS:
            continue
        if reads < UNEARNED * memory:
            text = f"it has {memory:.0%} of the memory and {reads:.1%} of the entries that are read"
            yield Hit(text, layer, row)


def earnings(m: Material) -> dict[Hashable, dict[str, float | None]]:
    """By layer: its share of the memory and of the reads, and reads for each entry stored."""
    sizes = m.by_layer("memory_size_mb") or m.by_layer("total_entries")
    reads = m.by_layer("entries_retrieved")
    used = {layer: m.count("total_reconstructions", layer) for layer in m.snapshot.layer_ids}
    if not any(reads.values()):
        reads = {layer: count for layer, count in used.items() if any(used.values())}
    out: dict[Hashable, dict[str, float | None]] = {}
    for layer in m.layers:
        if layer is None:
            continue
        stored = m.count("states_stored", layer)
        out[layer] = {
            "memory_share": _share(sizes, layer),
            "read_share": _share(reads, layer),
            "reads_per_stored": reads.get(layer, 0.0) / stored if stored and reads else None,
        }
    return out


def _share(values: Mapping[Hashable, float], layer: Hashable) -> float | None:
    whole = sum(values.values())
    return values.get(layer, 0.0) / whole if whole > 0 else None


def retrieval_slows_with_size(m: Material) -> Iterator[Hit]:
    """The more a memory holds, the longer a retrieval takes, and that is much of the step."""
    for layer in m.layers:
        found = time_against_size(m, layer)
        if not found or m.steps < ENOUGH_STEPS:
            continue
        share = _share_of_step(m, layer)
        grew = found["entries_grew"] >= GREW and found["time_grew"] >= GREW
        if grew and found["correlation"] >= FOLLOWS and share >= MATTERS:
            text = (
                f"a retrieval takes {found['time_grew']:.1f} times as long as when the memory was "
                f"{found['entries_grew']:.1f} times smaller; it is {share:.0%} of a step"
            )
            yield Hit(text, layer, {**found, "share_of_step": share})


def time_against_size(m: Material, layer: Hashable | None) -> dict[str, float]:
    """How retrieval time and entries went together over the windows; empty: too few of them."""
    times, sizes = m.series("avg_retrieval_time", layer), m.series("total_entries", layer)
    if times is None or sizes is None:
        return {}
    _, one, other = np.intersect1d(times.step, sizes.step, return_indices=True)
    seconds, entries = times.value[one], sizes.value[other]
    fine = np.isfinite(seconds) & np.isfinite(entries) & (seconds > 0) & (entries > 0)
    seconds, entries = seconds[fine], entries[fine]
    if len(seconds) < WINDOWS:
        return {}
    third = len(seconds) // 3
    return {
        "windows": float(len(seconds)),
        "correlation": _rank_correlation(entries, seconds),
        "time_grew": float(np.median(seconds[-third:]) / np.median(seconds[:third])),
        "entries_grew": float(np.median(entries[-third:]) / np.median(entries[:third])),
    }


def _rank_correlation(one: Array, other: Array) -> float:
    """Spearman's, of ranks that ties share."""
    ranks: list[Array] = []
    for values in (one, other):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    if any(np.ptp(r) == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _share_of_step(m: Material, layer: Hashable | None) -> float:
    operations = m.count("total_retrievals", layer) / max(1, m.steps)
    share = operations * m.value("avg_retrieval_time", layer) / m.value("step_time")
    return 0.0 if math.isnan(share) else share


def dead_layer(m: Material) -> Iterator[Hit]:
    """A layer holds entries that no reconstruction uses, while others' are used."""
    used = m.count("total_reconstructions")
    if m.steps < DEAD_STEPS or not used:
        return
    for layer in m.layers:
        held, own = m.value("total_entries", layer), m.count("total_reconstructions", layer)
        if layer is not None and held > 0 and own == 0:
            text = f"it holds {held:.0f} entries, and no reconstruction used any"
            yield Hit(text, layer, {"total_entries": held, "reconstructions_elsewhere": used})


def reconstructions_use_nothing(m: Material) -> Iterator[Hit]:
    """Reconstruction runs, and is given no memory."""
    calls, used = m.count("reconstruction_calls"), m.value("total_reconstructions")
    held = m.value("total_entries")
    if m.steps >= ENOUGH_STEPS and calls >= ENOUGH_STEPS and used == 0 and held > 0:
        text = f"{calls:.0f} reconstructions used no memory, though {held:.0f} entries are there"
        yield Hit(text, None, {"reconstruction_calls": calls, "total_entries": held})


def reconstruction_does_nothing(m: Material) -> Iterator[Hit]:
    """Reconstruction gives back what it was given."""
    for layer in m.layers:
        cosine, used = (
            m.value("reconstruction_similarity", layer),
            m.count("total_reconstructions", layer),
        )
        if used >= ENOUGH_STEPS and cosine >= 1 - NOTHING:
            text = "hidden states leave the reconstruction as they came"
            yield Hit(text, layer, {"reconstruction_similarity": cosine, "reconstructions": used})


def layer_reconstructs_worse(m: Material) -> Iterator[Hit]:
    """One layer's reconstruction is far worse than that of the others, by the model's measure."""
    quality = m.by_layer("reconstruction_quality")
    if len(quality) < 3:
        return
    for layer, value in quality.items():
        others = float(np.median([other for name, other in quality.items() if name != layer]))
        if value < WORSE * others and m.count("total_reconstructions", layer) >= DEAD_STEPS:
            text = f"its quality is {value:.2f}; the median of the other layers is {others:.2f}"
            yield Hit(text, layer, {"reconstruction_quality": value, "others": others})


def memory_changes_nothing(m: Material) -> Iterator[Hit]:
    """With and without memory the loss is the same to the last bit."""
    pairs = list(zip(m.compared.with_memory, m.compared.without, strict=True))
    if pairs and all(one == other for one, other in pairs):
        text = f"on {len(pairs)} batches the loss with memory was that without, to the last bit"
        yield Hit(text, None, {"batches": len(pairs), "how": m.compared.how})


def memory_hurts(m: Material) -> Iterator[Hit]:
    """The loss is lower without memory."""
    mean, error = m.compared.helps
    batches = len(m.compared.without)
    if batches >= ENOUGH_BATCHES and mean < -SURE * error and mean < 0:
        text = f"without memory the loss is lower by {-mean:.4g} ± {error:.2g} ({batches} batches)"
        yield Hit(text, None, {"helps_by": mean, "standard_error": error, "batches": batches})


def memory_not_compared(m: Material) -> Iterator[Hit]:
    """It was asked whether memory helps, and that could not be told."""
    if m.compared.reason:
        yield Hit(f"with and without memory were not compared: {m.compared.reason}")
