"""Settings that cannot work: layers that do not exist, thresholds, what never runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator

from cmr_monitor_callbacks.diagnostics.finding import Hit
from cmr_monitor_callbacks.diagnostics.material import Material
from cmr_monitor_callbacks.layers import matches

ENOUGH_STEPS = 20
"""Fewer may be a warm-up, in which a memory fills before it is read."""
ENOUGH_STATES = 1000
"""Below, all or none may be chance: of 1,000 a share of 1 % is missed once in 23,000 times."""
EVERYTHING = 0.999
RUNS = ("capture_calls", "states_captured", "total_retrievals", "reconstruction_calls")


def no_memory_found(m: Material) -> Iterator[Hit]:
    """Nothing of the model is listened to."""
    if m.watched == 0:
        yield Hit("no CMRProbe and no memory was found in the model", evidence={"watched": 0})


def target_layer_missing(m: Material) -> Iterator[Hit]:
    """A setting of the model or of the monitor names a layer that is not there."""
    blocks = m.declared.blocks
    for path, layers in m.declared.targets:
        for layer in layers:
            if _is_missing(m, layer):
                text = f"{path} names layer {layer}, but the model has {blocks} blocks"
                yield Hit(text, layer, {"setting": path, "blocks": blocks})
    known = {*m.snapshot.layer_ids, *(one.layer for one in m.entries)}
    for glob in m.layer_globs:
        if known and not any(matches(glob, layer) for layer in known):
            names = sorted(str(layer) for layer in known)
            text = f"monitoring.layers names {glob!r}, which matches none of {', '.join(names)}"
            yield Hit(text, evidence={"glob": glob, "layers": names})


def layer_never_runs(m: Material) -> Iterator[Hit]:
    """A layer is there, but nothing was captured, read or reconstructed in it."""
    runs = {layer: sum(m.count(name, layer) for name in RUNS) for layer in m.snapshot.layer_ids}
    active = {layer for layer, count in runs.items() if count}
    if not active or m.steps < ENOUGH_STEPS:
        return
    for source, layers in _named(m):
        if not active & layers:
            continue  # it numbers layers in another way
        for layer in sorted(layers - active, key=str):
            text = f"layer {layer} ({source}) took no part in {m.steps} steps; others did"
            yield Hit(text, layer, {"named_by": source, "steps": m.steps})


def _named(m: Material) -> Iterator[tuple[str, set[Hashable]]]:
    """Layers that should take part; of those that do not exist `target_layer_missing` tells."""
    missing = {
        layer for _, layers in m.declared.targets for layer in layers if _is_missing(m, layer)
    }
    if m.entries:
        yield "it has a place in the buffer", {one.layer for one in m.entries} - missing
    for path, layers in m.declared.targets:
        yield f"named by {path}", {layer for layer in layers if layer not in missing}


def _is_missing(m: Material, layer: int) -> bool:
    # blocks are numbered from 0 or from 1; a negative number counts from the end
    blocks = m.declared.blocks
    return bool(blocks) and not -blocks <= layer <= blocks


def interventions_never_run(m: Material) -> Iterator[Hit]:
    """States are stored, and nothing is ever made of them."""
    stored, calls = m.count("states_stored"), m.value("reconstruction_calls")
    if m.steps < ENOUGH_STEPS or stored == 0:
        return
    # a probe that was never told of any says nothing, where a watch says 0
    told = m.snapshot.source("reconstruction_calls").startswith("explicit")
    silent = math.isnan(calls) and told and m.count("total_retrievals") == 0
    if calls == 0 or silent:
        text = (
            f"{stored:.0f} states were stored in {m.steps} steps, and none was reconstructed from"
        )
        yield Hit(text, evidence={"states_stored": stored, "reconstruction_calls": calls})


def threshold_takes_nothing(m: Material) -> Iterator[Hit]:
    """No state that was scored passed the selection."""
    for layer in m.layers:
        considered, attempted = (
            m.count("states_considered", layer),
            m.value("states_attempted", layer),
        )
        if considered >= ENOUGH_STATES and attempted == 0:
            text = f"of {considered:.0f} states that were scored none passed the selection"
            yield Hit(text, layer, {"states_considered": considered, "states_attempted": 0})


def threshold_takes_everything(m: Material) -> Iterator[Hit]:
    """Every state that was scored passed the selection, which selects nothing."""
    for layer in m.layers:
        considered, rate = m.count("states_considered", layer), m.value("selection_rate", layer)
        if considered >= ENOUGH_STATES and rate >= EVERYTHING:
            text = f"{rate:.1%} of {considered:.0f} states that were scored passed the selection"
            yield Hit(text, layer, {"states_considered": considered, "selection_rate": rate})


def nothing_stored(m: Material) -> Iterator[Hit]:
    """A layer captures, and its buffer refuses all of it."""
    for layer in m.layers:
        captured, stored = m.count("states_captured", layer), m.value("states_stored", layer)
        if captured >= ENOUGH_STATES / 10 and stored == 0:
            text = f"{captured:.0f} states were captured, and the buffer took none"
            yield Hit(text, layer, {"states_captured": captured, "states_stored": 0})


def capacity_under_one_sequence(m: Material) -> Iterator[Hit]:
    """A layer's capacity is less than what one sequence captures: it drops what it just took."""
    rows = m.value("batch_size")
    rows = 1.0 if math.isnan(rows) else max(1.0, rows)
    for layer in m.layers:
        capacity, captured = m.value("capacity", layer), m.count("states_captured", layer)
        if m.steps < ENOUGH_STEPS or not capacity > 0:
            continue
        each = captured / m.steps / rows
        if capacity < each:
            of = "one sequence" if rows > 1 else "one step"
            text = f"its capacity of {capacity:.0f} is less than the {each:.0f} states of {of}"
            yield Hit(text, layer, {"capacity": capacity, "states": each, "rows": rows})
