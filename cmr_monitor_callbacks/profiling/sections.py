"""Time by section, by layer and by operator."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cmr_monitor_callbacks.profiling.memory import SectionMemory
from cmr_monitor_callbacks.profiling.names import section_of
from cmr_monitor_callbacks.profiling.nesting import Forest, Node, locate, nest, nodes_of
from cmr_monitor_callbacks.profiling.trace import Span, Trace

DeviceTimes = Mapping[int, tuple[float, float]]
"""By identity of a node: seconds of what it put on a device, within it and in it alone."""


def device_times(forest: Forest, trace: Trace) -> dict[int, tuple[float, float]]:
    """What each section put on a device, in seconds of the kernels, wherever these ran later.

    A kernel belongs to the section in which it was launched; what the backward launches belongs to
    none.
    """
    kernels: dict[int, float] = defaultdict(float)
    for kernel in trace.kernels:
        if kernel.correlation is not None:
            kernels[kernel.correlation] += kernel.seconds
    out: dict[int, tuple[float, float]] = {}
    launches = [span for span in trace.launches if span.correlation in kernels]
    for span, node in locate(forest, launches, lambda item: (item.thread, item.start)):
        seconds = kernels[span.correlation or 0]
        for other in node.around() if node is not None else ():
            total, alone = out.get(id(other), (0.0, 0.0))
            out[id(other)] = total + seconds, alone + (seconds if other is node else 0.0)
    return out


def section_rows(
    forest: Forest, trace: Trace, memory: Mapping[int, SectionMemory] | None
) -> dict[str, dict[str, Any]]:
    """Each section's numbers, the one with the most time of its own first.

    Args:
        forest: the sections, nested.
        trace: where they come from.
        memory: by identity of a node, what it allocated; None: that was not recorded.
    """
    calls: dict[str, list[Node]] = defaultdict(list)
    for node in nodes_of(forest):
        calls[node.span.name].append(node)
    on_device = device_times(forest, trace) if trace.kernels else None
    rows = {name: _row(name, nodes, trace, on_device) for name, nodes in calls.items()}
    for name, nodes in calls.items():
        rows[name] |= _memory_row(nodes, memory)
    return dict(sorted(rows.items(), key=lambda item: -item[1]["self_seconds"]))


def _row(
    name: str, nodes: list[Node], trace: Trace, on_device: DeviceTimes | None
) -> dict[str, Any]:
    said = section_of(name)
    outer = [node for node in nodes if node.outermost]
    each = [node.span.seconds for node in outer]
    wall = trace.seconds
    row: dict[str, Any] = {
        "component": "" if said is None else said.component,
        "layer": None if said is None else said.layer,
        "recompute": said is not None and said.recompute,
        "calls": len(outer),
        "seconds": sum(each),
        "self_seconds": sum(node.self_seconds for node in nodes),
        "median_seconds": statistics.median(each),
        "max_seconds": max(each),
        "share": sum(each) / wall if wall > 0 else None,
        "device_seconds": None,
        "device_self_seconds": None,
    }
    if on_device is not None:
        nothing = (0.0, 0.0)
        row["device_seconds"] = sum(on_device.get(id(node), nothing)[0] for node in outer)
        row["device_self_seconds"] = sum(on_device.get(id(node), nothing)[1] for node in nodes)
    return row


def _memory_row(nodes: list[Node], memory: Mapping[int, SectionMemory] | None) -> dict[str, Any]:
    """What the section allocated, and the most that it held above what was held when it began."""
    if memory is None:
        return {"allocated_bytes": None, "peak_bytes": None}
    allocated: dict[str, int] = defaultdict(int)
    peak: dict[str, int] = defaultdict(int)
    for node in nodes:
        found = memory.get(id(node))
        if found is None or not node.outermost:
            continue
        for device, nbytes in found.allocated.items():
            allocated[device] += nbytes
        for device, nbytes in found.peak.items():
            peak[device] = max(peak[device], nbytes)
    return {"allocated_bytes": dict(allocated), "peak_bytes": dict(peak)}


def layer_rows(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What each layer took, by component; the slowest layer first.

    ``seconds`` of a layer is that of its forward where that is seen, else the sum of its own times.
    """
    out: dict[str, dict[str, Any]] = {}
    for row in sections.values():
        if row["layer"] is None or row["recompute"]:
            continue
        found = out.setdefault(row["layer"], {"seconds": 0.0, "self_seconds": 0.0})
        found[row["component"]] = row["seconds"]
        found["self_seconds"] += row["self_seconds"]
    for found in out.values():
        found["seconds"] = found.get("forward", found["self_seconds"])
    return dict(sorted(out.items(), key=lambda item: -item[1]["seconds"]))


def operator_rows(
    trace: Trace, top: int, flops: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The operators with the most time of their own, on the device where there is one.

    Args:
        trace: the trace.
        top: how many.
        flops: operations by operator; None: not counted.
    """
    forest = nest(trace.operators)
    on_device = device_times(forest, trace) if trace.kernels else None
    by_name: dict[str, list[Node]] = defaultdict(list)
    for node in nodes_of(forest):
        by_name[node.span.name].append(node)
    rows: list[dict[str, Any]] = []
    for name, nodes in by_name.items():
        alone = None
        if on_device is not None:
            alone = sum(on_device.get(id(node), (0.0, 0.0))[1] for node in nodes)
        rows.append(
            {
                "name": name,
                "calls": len(nodes),
                "seconds": sum(node.span.seconds for node in nodes if node.outermost),
                "self_seconds": sum(node.self_seconds for node in nodes),
                "device_self_seconds": alone,
                "flops": None if flops is None else flops.get(name, 0.0),
            }
        )
    rows.sort(key=lambda row: (-(row["device_self_seconds"] or 0.0), -row["self_seconds"]))
    return rows[:top]


def busy_seconds(spans: list[Span]) -> float:
    """Seconds in which at least one of them ran.

    >>> one, two = Span("a", 0.0, 2.0, (0, 1)), Span("b", 1.0, 2.0, (0, 2))
    >>> busy_seconds([one, two])
    3.0
    """
    total, end = 0.0, float("-inf")
    for span in sorted(spans, key=lambda item: item.start):
        if span.end > end:
            total += span.end - max(span.start, end)
            end = span.end
    return total


def gpu_rows(trace: Trace) -> dict[str, Any]:
    """How busy each device was; ``busy_share`` is None without one."""
    if not trace.kernels:
        return {"busy_share": None, "devices": {}}
    wall = trace.seconds
    by_device: dict[int, list[Span]] = defaultdict(list)
    for kernel in trace.kernels:
        by_device[int(kernel.thread[0])].append(kernel)
    devices: dict[str, dict[str, Any]] = {}
    for device, kernels in sorted(by_device.items()):
        busy = busy_seconds(kernels)
        devices[str(device)] = {
            "name": trace.devices.get(device, ""),
            "busy_seconds": busy,
            "busy_share": min(1.0, busy / wall) if wall > 0 else None,
            "kernels": len(kernels),
        }
    shares = [row["busy_share"] for row in devices.values() if row["busy_share"] is not None]
    return {"busy_share": statistics.fmean(shares) if shares else None, "devices": devices}
