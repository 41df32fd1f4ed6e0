"""What limits the profiled steps, in a sentence with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_IDLE: Final = 0.5
"""A device that is busy less than this is waiting for the host."""


def duration(seconds: float) -> str:
    """A duration for people.

    >>> duration(0.0123), duration(4e-5), duration(2.5)
    ('12.3 ms', '40 µs', '2.5 s')
    """
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def find_bottleneck(
    sections: Mapping[str, Mapping[str, Any]],
    operators: Sequence[Mapping[str, Any]],
    gpu: Mapping[str, Any],
    wall: float,
) -> dict[str, Any]:
    """The section with the most time of its own, the slowest operator, and who waits for whom.

    Args:
        sections: of the profile, by name.
        operators: the slowest first.
        gpu: how busy the devices were.
        wall: seconds that were profiled.

    Returns:
        ``sentence``, and the numbers in it: ``section``, ``share``, ``operator``,
        ``operator_share``, ``gpu_busy_share``; None where it is not known.
    """
    busy = gpu["busy_share"]
    on_device = busy is not None and busy >= _IDLE
    key = "device_self_seconds" if on_device else "self_seconds"
    out: dict[str, Any] = {"section": None, "share": None, "operator": None, "operator_share": None}
    out["gpu_busy_share"] = busy
    parts = []
    if busy is not None:
        verb = "is the limit" if on_device else "waits for the host"
        parts.append(f"the GPU {verb} (busy {busy:.0%} of the time)")
    name = max(sections, key=lambda item: sections[item][key] or 0.0, default=None)
    if name is not None and wall > 0:
        row = sections[name]
        own = row[key] or 0.0
        out |= {"section": name, "share": own / wall}
        parts.append(
            f"{name} takes the most time of its own: {duration(own)} of {duration(wall)} "
            f"({own / wall:.0%}), {row['calls']} calls of {duration(row['median_seconds'])} each"
        )
    if operators and wall > 0:
        top = operators[0]
        own = top[key] or 0.0
        out |= {"operator": top["name"], "operator_share": own / wall}
        parts.append(
            f"the slowest operator is {top['name']}: {duration(own)} ({own / wall:.0%}) in "
            f"{top['calls']} calls"
        )
    text = "; ".join(parts) or "nothing was recorded"
    # the name of a section is not a word to begin a sentence with a capital
    out["sentence"] = f"{text}." if text.startswith("cmr/") else f"{text[0].upper()}{text[1:]}."
    return out
