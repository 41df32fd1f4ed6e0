"""Where the time of a step goes, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.reports.numbers import shown

_PHASES: Final = {
    "data_wait": "waiting for data",
    "avg_forward_time": "the forward pass",
    "backward_time": "the backward pass",
    "optimizer_time": "the optimizer",
    "monitor_time": "this monitor",
}
_PARTS: Final = {
    "capture": ("capture_calls", "avg_capture_time"),
    "retrieval": ("total_retrievals", "avg_retrieval_time"),
    "reconstruction": ("reconstruction_calls", "avg_reconstruction_time"),
}
"""Of the memory's parts: how often per stretch, and how long each time."""


def find_bottleneck(
    means: Mapping[str, float],
    counts: Mapping[str, float],
    steps: float,
    layers: Mapping[str, Mapping[LayerId, float]],
) -> dict[str, Any]:
    """What takes most of a step, and which of the memory's parts takes most of its share.

    Args:
        means: of the whole model, mean seconds by metric.
        counts: how often the memory's parts were called in the stretch, by metric.
        steps: steps of the stretch.
        layers: seconds of a call by layer, by metric.

    Returns:
        ``phase`` and ``share`` of the step, ``part`` and ``part_share``, ``layer``, and the
        ``sentence``; None where it is not known.

    >>> found = find_bottleneck({"step_time": 0.1, "avg_forward_time": 0.07}, {}, 5, {})
    >>> found["sentence"]
    'Most of a step (70 % of 100 ms) is the forward pass.'
    """
    step, wait = means.get("step_time", math.nan), means.get("data_wait", math.nan)
    wall = step + (0.0 if math.isnan(wait) else wait)
    phases = {
        name: means[name] / wall
        for name in _PHASES
        if wall > 0 and not math.isnan(means.get(name, math.nan))
    }
    parts = {}
    for part, (calls, seconds) in _PARTS.items():
        each, often = means.get(seconds, math.nan), counts.get(calls, math.nan)
        if steps > 0 and wall > 0 and not math.isnan(each * often):
            parts[part] = each * often / steps / wall
    out: dict[str, Any] = dict.fromkeys(("phase", "share", "part", "part_share", "layer"))
    sentences = []
    if phases:
        phase = max(phases, key=phases.__getitem__)
        out |= {"phase": phase, "share": phases[phase]}
        word = "Most" if phases[phase] > 0.5 else "The largest part"
        sentences.append(
            f"{word} of a step ({shown(phases[phase], '1')} of {shown(wall, 's')}) is "
            f"{_PHASES[phase]}."
        )
    if parts:
        part = max(parts, key=parts.__getitem__)
        out |= {"part": part, "part_share": parts[part]}
        text = f"Of the memory's parts {part} takes the most: {shown(parts[part], '1')} of a step"
        times = layers.get(_PARTS[part][1], {})
        slowest = max(times, key=times.__getitem__, default=None)
        if slowest is not None and len(times) > 1:
            out["layer"] = slowest
            text += f", {shown(times[slowest], 's')} a call at layer {slowest}, the slowest"
        sentences.append(f"{text}.")
    out["sentence"] = " ".join(sentences) or "No times were recorded."
    return out
