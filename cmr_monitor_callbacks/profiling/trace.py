"""A Chrome trace as ``torch.profiler`` writes it, read into spans and points; times in seconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cmr_monitor_callbacks.errors import CMRMonitorError
from cmr_monitor_callbacks.profiling.names import PREFIX

Thread = tuple[Any, Any]
"""Ids of a process and a thread."""
_STEP: Final = "ProfilerStep#"
_KERNELS: Final = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LAUNCHES: Final = frozenset({"cuda_runtime", "cuda_driver"})
_HOST: Final = 0
"""Number of the CPU among torch's types of devices; CUDA's is 1."""
_DEVICES: Final = {_HOST: "cpu", 1: "cuda"}
_MICRO: Final = 1e-6


@dataclass(frozen=True)
class Span:
    """Something that took time.

    Attributes:
        name: what it was.
        start: seconds since the trace began.
        seconds: how long it took.
        thread: on the host, where it ran; of a kernel its device and stream.
        correlation: ties a kernel to the call that launched it; None: nothing does.
    """

    name: str
    start: float
    seconds: float
    thread: Thread
    correlation: int | None = None

    @property
    def end(self) -> float:
        """Seconds since the trace began."""
        return self.start + self.seconds


@dataclass(frozen=True)
class Allocation:
    """Memory that was taken, or given back.

    Attributes:
        time: seconds since the trace began.
        thread: where.
        device: ``cpu``, ``cuda:0``, …
        nbytes: negative: given back.
        total: bytes in use after it, as the allocator knows.
    """

    time: float
    thread: Thread
    device: str
    nbytes: int
    total: int


@dataclass(frozen=True)
class Trace:
    """What is read of a trace.

    Attributes:
        sections: ranges of this package.
        steps: one for each step that was profiled.
        operators: calls of torch's operators on the host.
        launches: calls that put work on a device.
        kernels: what ran on a device; the first of ``thread`` is the device.
        allocations: in the order of time.
        devices: names of the devices, by number.
    """

    sections: list[Span] = field(default_factory=list)
    steps: list[Span] = field(default_factory=list)
    operators: list[Span] = field(default_factory=list)
    launches: list[Span] = field(default_factory=list)
    kernels: list[Span] = field(default_factory=list)
    allocations: list[Allocation] = field(default_factory=list)
    devices: dict[int, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The time that was profiled: that of the steps."""
        return sum(step.seconds for step in self.steps)


def read_trace(path: Path) -> Trace:
    """Read a trace file, compressed or not.

    Raises:
        CMRMonitorError: it cannot be read, or is no trace.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = json.loads(raw)
    except (OSError, EOFError, ValueError) as error:
        raise CMRMonitorError(f"the trace {str(path)!r} cannot be read: {error}") from None
    if not isinstance(found, Mapping) or not isinstance(found.get("traceEvents"), list):
        raise CMRMonitorError(f"{str(path)!r} is no trace: it has no list of traceEvents")
    return trace_of(found)


def trace_of(found: Mapping[str, Any]) -> Trace:
    """A trace from its parsed JSON.

    >>> event = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 5.0, "dur": 2.0}
    >>> trace_of({"traceEvents": [event]}).operators[0].seconds
    2e-06
    """
    events = [event for event in found["traceEvents"] if event.get("ph") in ("X", "i")]
    begin = min((event["ts"] for event in events if "ts" in event), default=0.0)
    trace = Trace(devices=_devices(found.get("deviceProperties") or ()))
    places = {
        **dict.fromkeys(_KERNELS, trace.kernels),
        **dict.fromkeys(_LAUNCHES, trace.launches),
        "cpu_op": trace.operators,
    }
    for event in events:
        category = event.get("cat")
        if category == "user_annotation":
            name = event["name"]
            if name.startswith(PREFIX):
                trace.sections.append(_span(event, begin))
            elif name.startswith(_STEP):
                trace.steps.append(_span(event, begin))
        elif category in places:
            places[category].append(_span(event, begin))
        elif event.get("name") == "[memory]":
            trace.allocations.append(_allocation(event, begin))
    trace.allocations.sort(key=lambda item: item.time)
    return trace


def _devices(properties: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    return {int(item["id"]): str(item.get("name", "")) for item in properties if "id" in item}


def _span(event: Mapping[str, Any], begin: float) -> Span:
    arguments = event.get("args") or {}
    thread = event.get("pid"), event.get("tid")
    if event.get("cat") in _KERNELS:
        thread = arguments.get("device", event.get("pid")), arguments.get("stream")
    return Span(
        event["name"],
        (event["ts"] - begin) * _MICRO,
        event.get("dur", 0.0) * _MICRO,
        thread,
        arguments.get("correlation"),
    )


def _allocation(event: Mapping[str, Any], begin: float) -> Allocation:
    arguments = event["args"]
    kind = arguments.get("Device Type", _HOST)
    name = _DEVICES.get(kind, f"device {kind}")
    return Allocation(
        (event["ts"] - begin) * _MICRO,
        (event.get("pid"), event.get("tid")),
        name if kind == _HOST else f"{name}:{arguments.get('Device Id', 0)}",
        int(arguments.get("Bytes", 0)),
        int(arguments.get("Total Allocated", 0)),
    )
