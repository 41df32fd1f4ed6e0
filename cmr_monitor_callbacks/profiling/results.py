"""The results of a profile, as plain data that JSON can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.profiling.bottleneck import find_bottleneck
from cmr_monitor_callbacks.profiling.memory import memory_of, memory_rows
from cmr_monitor_callbacks.profiling.nesting import nest
from cmr_monitor_callbacks.profiling.sections import (
    gpu_rows,
    layer_rows,
    operator_rows,
    section_rows,
)
from cmr_monitor_callbacks.profiling.trace import Trace

RESULTS: Final = ".profile.json"
"""How the name of a file of results ends."""
_VERSION: Final = 1


def summarise(
    trace: Trace,
    top: int,
    about: Mapping[str, Any],
    flops: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What a trace says.

    Args:
        trace: the trace.
        top: operators that are listed.
        about: the circumstances.
        flops: operations by operator; None: not counted.

    Returns:
        ``sections`` by name, ``layers``, ``operators``, ``memory`` by device, ``gpu``,
        ``bottleneck`` and ``about``; times in seconds, memory in bytes, None where nothing is
        known.

    >>> summarise(Trace(), 5, {})["gpu"]
    {'busy_share': None, 'devices': {}}
    """
    forest = nest(trace.sections)
    recorded = bool(trace.allocations)
    sections = section_rows(forest, trace, memory_of(forest, trace) if recorded else None)
    circumstances = {"version": _VERSION, "seconds": trace.seconds, "steps": len(trace.steps)}
    operators, gpu = operator_rows(trace, top, flops), gpu_rows(trace)
    return {
        "sections": sections,
        "layers": layer_rows(sections),
        "operators": operators,
        "memory": memory_rows(trace),
        "gpu": gpu,
        "bottleneck": find_bottleneck(sections, operators, gpu, trace.seconds),
        "about": {**circumstances, **about},
    }


def save_results(results: Mapping[str, Any], path: Path) -> None:
    """Write results as JSON."""
    path.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load_results(path: Path | str) -> dict[str, Any]:
    """Read results that were saved.

    Args:
        path: a file of results, or a folder that holds one or more below it: the newest is read.

    Raises:
        CMRMonitorError: there are none, or the file is something else.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(file.rglob(f"*{RESULTS}"), key=lambda item: (item.stat().st_mtime, item))
        if not found:
            raise CMRMonitorError(
                f"there is no profile (*{RESULTS}) in or under {str(path)!r}: have one made with "
                "monitoring.enable_profiling: true"
            )
        file = found[-1]
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CMRMonitorError(f"{str(file)!r} cannot be read: {error}") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("sections"), dict):
        raise CMRMonitorError(f"{str(file)!r} holds no results of a profile")
    return loaded
