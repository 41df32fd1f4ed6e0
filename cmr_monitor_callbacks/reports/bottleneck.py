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
_BEHIND: Final = 1.2
"""A rank is named from so many times the ranks' median of their own seconds per step."""


def find_bottleneck(
    means: Mapping[str, float],
    counts: Mapping[str, float],
    steps: float,
    layers: Mapping[str, Mapping[LayerId, float]],
    *,
    stragglers: Mapping[int, float] | None = None,
    world_size: int = 1,
) -> dict[str, Any]:
    """What takes most of a step, which of the memory's parts takes most, and who is behind.

    A share is seconds per step over the wall seconds of a step (``step_time + data_wait``).

    Args:
        means: of the whole model, mean seconds by metric.
        counts: how often the memory's parts were called in the stretch, on all ranks, by metric;
            ``total_forward_time`` in seconds.
        steps: steps of the stretch.
        layers: seconds of a call by layer, by metric.
        stragglers: by rank, its own seconds per step over the ranks' median.
        world_size: ranks; each does its part of the calls at the same time.

    Returns:
        ``phase`` and ``share`` of the step, ``part`` and ``part_share``, ``layer``, ``rank`` and
        the ``sentence``; None where it is not known.

    >>> found = find_bottleneck({"step_time": 0.1, "avg_forward_time": 0.07}, {}, 5, {})
    >>> found["sentence"]
    'Most of a step (70 % of 100 ms) is the forward pass.'
    """
    wait = means.get("data_wait", math.nan)
    wall = means.get("step_time", math.nan) + (0.0 if math.isnan(wait) else wait)
    phases = _phases(means, counts, steps, wall)
    parts = _parts(means, counts, steps * world_size, wall)
    out: dict[str, Any] = dict.fromkeys(("phase", "share", "part", "part_share", "layer", "rank"))
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
        times = _known(layers.get(_PARTS[part][1], {}))
        if len(times) > 1:
            slowest = out["layer"] = max(times, key=times.__getitem__)
            text += f", {shown(times[slowest], 's')} a call at layer {slowest}, the slowest"
        sentences.append(f"{text}.")
    behind = _known(stragglers or {})
    rank = max(behind, key=behind.__getitem__, default=None)
    if rank is not None and behind[rank] >= _BEHIND:
        out["rank"] = rank
        sentences.append(
            f"The others wait for rank {rank}: its own work takes {behind[rank]:.1f} times the "
            "ranks' median."
        )
    out["sentence"] = " ".join(sentences) or "No times were recorded."
    return out


def _phases(
    means: Mapping[str, float], counts: Mapping[str, float], steps: float, wall: float
) -> dict[str, float]:
    """Share of a step by phase. A step of several passes has more than one pass' mean."""
    seconds = _known({name: means.get(name, math.nan) for name in _PHASES})
    forward = counts.get("total_forward_time", math.nan)
    if "avg_forward_time" in seconds and steps > 0 and not math.isnan(forward):
        # a sampled one adds up to less than the pass that it stands for
        seconds["avg_forward_time"] = max(seconds["avg_forward_time"], forward / steps)
    return {name: value / wall for name, value in seconds.items()} if wall > 0 else {}


def _parts(
    means: Mapping[str, float], counts: Mapping[str, float], steps: float, wall: float
) -> dict[str, float]:
    """Share of a step by part of the memory; calls that were not made take nothing."""
    if not (steps > 0 and wall > 0):
        return {}
    shares = {
        part: means.get(seconds, math.nan) * counts.get(calls, math.nan) / steps / wall
        for part, (calls, seconds) in _PARTS.items()
    }
    return {part: share for part, share in _known(shares).items() if share > 0}


def _known(numbers: Mapping[Any, float]) -> dict[Any, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
