"""All diagnostics at once: from what is known of a run to what `run_diagnostics` gives."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from cmr_monitor_callbacks.diagnostics.buffers import age_at_eviction
from cmr_monitor_callbacks.diagnostics.cross_checks import impact
from cmr_monitor_callbacks.diagnostics.finding import Finding, as_data, status_of
from cmr_monitor_callbacks.diagnostics.holdings import distributions
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.diagnostics.reading_memory import earnings, time_against_size
from cmr_monitor_callbacks.diagnostics.table import DIAGNOSTICS, SECTIONS
from cmr_monitor_callbacks.health import reported_name


def examine(material: Material) -> dict[str, Any]:
    """Every diagnostic.

    Returns:
        ``findings`` (all, the worst first), ``status``, ``component_health`` and a key for each of
        `SECTIONS`, each with ``status``, ``findings`` and what was looked at; ``step``, ``time``,
        and ``not_available`` (what could not be looked at, and why). JSON can hold it; no number
        is NaN.

    >>> from cmr_monitor_callbacks.snapshot import Snapshot
    >>> found = examine(Material(Snapshot.empty("train"), watched=0))
    >>> found["findings"][0]["name"], found["memory_analysis"]["status"]
    ('no_memory_found', 'unknown')
    """
    by_section: dict[str, list[Finding]] = {name: [] for name in SECTIONS}
    for diagnostic in DIAGNOSTICS:
        by_section[diagnostic.section] += diagnostic.findings(material)
    found = sorted(
        (one for some in by_section.values() for one in some), key=lambda f: -f.severity.rank
    )
    looked_at = _looked_at(material)
    sections = {
        name: {
            "status": status_of(some, known=_known(material, name)),
            "findings": [one.to_dict() for one in some],
            **looked_at[name],
        }
        for name, some in by_section.items()
    }
    whole: dict[str, Any] = as_data(
        {
            "step": material.snapshot.step,
            "time": material.snapshot.time,
            "status": status_of(found, known=material.steps > 0),
            "component_health": _components(material, found),
            **sections,
            "findings": [one.to_dict() for one in found],
            "not_available": [*material.unknown, *_not_available(material)],
        }
    )
    return whole


def _components(m: Material, found: Sequence[Finding]) -> dict[str, Any]:
    """Health as the alerts have it, with what the diagnostics found of each component."""
    components: dict[str, Any] = {}
    names = dict.fromkeys([*m.health.components, *(one.component for one in found)])
    for name in names:
        verdict = m.health.components.get(name)
        mine = [one for one in found if one.component == name]
        alerts = "unknown" if verdict is None else verdict.status.value
        components[reported_name(name)] = {
            "status": _worse(alerts, status_of(mine, known=False)),
            "score": None if verdict is None else verdict.score,
            "findings": [one.to_dict() for one in mine],
        }
    return {
        "status": _worse(m.health.status.value, status_of(found, known=False)),
        "score": m.health.score,
        "components": components,
        "findings": [one.to_dict() for one in found],
    }


def _worse(*statuses: str) -> str:
    order = ("unknown", "healthy", "warning", "critical")
    return max(statuses, key=order.index)


def _known(m: Material, section: str) -> bool:
    """Whether there was anything to look at."""
    values = {
        "memory_analysis": bool(m.entries) or not math.isnan(m.value("total_entries")),
        "retrieval_analysis": not math.isnan(m.value("total_retrievals")),
        "reconstruction_analysis": not math.isnan(m.value("reconstruction_calls"))
        or bool(m.compared.without),
        "counter_analysis": bool(m.own_counts),
        "optimization_analysis": bool(impact(m)),
        "setup_analysis": m.watched > 0,
    }
    return values.get(section, True)


def _looked_at(m: Material) -> dict[str, dict[str, Any]]:
    """What each part is about, beside its findings."""
    own = ("failures", "invalid_samples", "overhead_fraction")
    return {
        "memory_analysis": _memory(m),
        "retrieval_analysis": {
            "layers": earnings(m),
            "hit_rate": {layer: _hit_rate(m, layer) for layer in _layers(m)},
            "time_against_size": time_against_size(m, None),
        },
        "reconstruction_analysis": _reconstruction(m),
        "hook_analysis": {"hooks": _hooks(m), "by_owner": _by_owner(m)},
        "optimization_analysis": {"impact": impact(m)},
        "counter_analysis": {
            "counters": [{**vars(one), "counted": ours} for one, ours in m.own_counts]
        },
        "setup_analysis": {"declared": dict(m.declared.targets), "blocks": m.declared.blocks},
        "monitor_analysis": {name: m.snapshot.own_value(name, None, "run") for name in own},
    }


def _memory(m: Material) -> dict[str, Any]:
    return {
        "layers": distributions(m),
        "age_at_eviction": {layer: age_at_eviction(m, layer) for layer in _layers(m)},
        "missed": {layer: vars(missed) for layer, missed in m.missed.items()},
        "conservation": [balance.to_dict() for balance in m.balances],
    }


def _reconstruction(m: Material) -> dict[str, Any]:
    mean, error = m.compared.helps
    return {
        "quality": m.by_layer("reconstruction_quality"),
        "similarity": m.by_layer("reconstruction_similarity"),
        "memory_helps": {
            "batches": len(m.compared.without),
            "helps_by": mean,
            "standard_error": error,
            "how": m.compared.how,
        },
    }


def _layers(m: Material) -> list[Hashable]:
    return [layer for layer in m.layers if layer is not None]


def _hit_rate(m: Material, layer: Hashable) -> float:
    """Of the slots asked for; where nobody counts these, of the cache."""
    slots = m.value("retrieval_hit_rate", layer)
    return m.value("cache_hit_rate", layer) if math.isnan(slots) else slots


def _hooks(m: Material) -> list[dict[str, Any]]:
    rows = []
    for hook in m.hooks:
        row = {**vars(hook), "ours": hook.ours}
        if m.measured is not None:
            key = hook.module, hook.kind, hook.id
            row["calls"] = m.measured.calls.get(key, 0)
            row["seconds"] = m.measured.seconds.get(key, 0.0)
            row["changes_output"] = key in m.measured.changed
        rows.append(row)
    return rows


def _by_owner(m: Material) -> dict[str, int]:
    owners: dict[str, int] = {}
    for hook in m.hooks:
        owners[hook.owner] = owners.get(hook.owner, 0) + 1
    return owners


def _not_available(m: Material) -> list[str]:
    """What a model offers nothing for, each a short sentence."""
    out = []
    if not m.entries:
        out.append(
            "ages, relevance and duplicates: no buffer is recognised whose entries can be read"
        )
    for one in m.entries:
        missing = [
            name
            for name, value in (
                ("age", one.stored_at),
                ("relevance", one.relevance),
                ("what was never read", one.never_read),
            )
            if value is None
        ]
        if missing and one.count:
            out.append(f"{', '.join(missing)} of {one.path}, layer {one.layer}: entries do not say")
    if all(missed.looks < 3 for missed in m.missed.values()):
        out.append(
            "eviction of what is later missed: entries were looked at fewer than three times"
        )
    if m.history is None:
        out.append("time against size, optimisation impact: no windows are kept")
    if not m.compared.without and not m.compared.reason:
        out.append("whether memory helps: monitoring.diagnostics.compare_memory_every is 0")
    if m.measured is None:
        out.append("what hooks cost: nobody measured it (monitor.measure_hooks)")
    out += [
        f"books of layer {b.layer}: what it held at the start is not known"
        for b in m.balances
        if b.at_start is None
    ]
    return out
