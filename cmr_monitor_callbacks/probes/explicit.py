"""The explicit probe: a model's author says what happened."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from cmr_monitor_callbacks.events import Number
from cmr_monitor_callbacks.probes.timers import (
    IDLE,
    DeviceTimer,
    IdleTimer,
    ProbeTimer,
    Sections,
    SectionTimer,
    Timer,
)
from cmr_monitor_callbacks.recording.cells import CellRow, countable
from cmr_monitor_callbacks.recording.device_clock import DeviceClock, DeviceSeconds
from cmr_monitor_callbacks.recording.recorder import ON_DEVICE

_compiling = (
    torch.compiler.is_dynamo_compiling
    if hasattr(torch.compiler, "is_dynamo_compiling")
    else torch.compiler.is_compiling
)
# -1 outside of a backward: inside, a forward is the recompute of activation checkpointing (62 ns)
_graph_task = torch._C._current_graph_task_id


_NO_DATA: Final = float("nan")
Extend = Callable[[Iterable[Any]], None]


class ProbeLink(Protocol):
    """What a monitor gives to a probe that it attaches."""

    slot: int
    """Column of the probe's layer."""

    def extend(self, kind: str) -> Extend | None:
        """Adds an event of a kind; None where that component is switched off."""
        ...

    def gauge(self, field: int) -> float:
        """What the host knew last of a field of the buffer; NaN: nothing."""
        ...

    def add_any(self, kind: str, fields: Sequence[Any]) -> None:
        """Check an event value by value and add it."""
        ...

    def late(self, kind: str, seconds: DeviceSeconds, times: float) -> None:
        """The duration of so many operations of a kind, which is not known yet."""
        ...

    def cells(self, kind: str, device: torch.device) -> CellRow:
        """The row of a kind on a device."""
        ...

    def error(self, exc: BaseException) -> None:
        """Take note of an error."""
        ...


class CMRProbe:
    """Says what a layer's memory did. Does nothing, in under 100 ns, until a monitor attaches.

    Hold one wherever you like in a module: an attribute, a list, a dict. It is no submodule, adds
    nothing to ``state_dict`` and is not cast or moved with the model; a copy or pickle of it is a
    new probe that no monitor listens to.

    Numbers are Python numbers or 0-d tensors on any device. A tensor is added in place where it
    is and read once per window, so nothing waits for a GPU. Counts are increments since the last
    call; ``entries``, ``capacity`` and ``nbytes`` are what holds now. None is no data. A value that
    is negative, not finite or not a number is left out, counted (``cmr_monitor/invalid_samples``)
    and named in the error log; a probe never raises in your forward.

    A recompute of activation checkpointing is not counted. Under ``torch.compile`` use tensors or
    ints; durations are not measured there.

    Args:
        layer: id of the layer, an int or a str; None: the model as a whole.

    >>> probe = CMRProbe(4)
    >>> with probe.timer() as timer:
    ...     stored = 45
    >>> probe.capture(attempted=52, captured=50, stored=stored, seconds=timer.seconds)
    >>> probe
    CMRProbe(layer=4)
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_capture",
        "_cells",
        "_link",
        "_reconstruction",
        "_retrieval",
        "_sections",
        "_slot",
        "_timer",
        "layer",
    )

    def __init__(self, layer: Hashable | None = None) -> None:
        self.layer = layer
        self._link: ProbeLink | None = None
        self._slot = 0
        self._capture: Extend | None = None
        self._reconstruction: Extend | None = None
        self._retrieval: Extend | None = None
        self._buffer: Extend | None = None
        self._cells: dict[str, CellRow] | None = None
        self._timer: Timer = IDLE
        self._sections: Sections | None = None

    def __repr__(self) -> str:
        return f"CMRProbe(layer={self.layer!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return CMRProbe, (self.layer,)

    # -- what a model's author calls --------------------------------------------------------

    def capture(
        self,
        attempted: Number,
        captured: Number,
        stored: Number,
        seconds: Number = None,
        *,
        considered: Number = None,
    ) -> None:
        """One call of the capture.

        Args:
            attempted: states that passed the selection and that the capture tried to take.
            captured: states taken: finite, well-shaped, handed to the buffer.
            stored: of those, the ones that the buffer took.
            seconds: duration of the call.
            considered: states scored for relevance.
        """
        if _compiling():
            self._add_compiled("capture", (attempted, captured, stored, seconds, considered))
            return
        extend = self._capture
        if extend is None or _graph_task() != -1:
            return
        # only what is surely no tensor goes to the list; the numbers are looked at later, together
        if (
            type(attempted) is int
            and type(captured) is int
            and type(stored) is int
            and (seconds is None or type(seconds) is float)
            and (considered is None or type(considered) is int)
        ):
            extend((self._slot, attempted, captured, stored, seconds, considered))
        elif type(seconds) is DeviceSeconds:
            self._add_late("capture", seconds, 1)
            self.capture(attempted, captured, stored, considered=considered)
        else:
            self._add_any("capture", (attempted, captured, stored, seconds, considered))

    def reconstruction(
        self, memories_used: Number, quality: Number = None, seconds: Number = None
    ) -> None:
        """One call of the reconstruction.

        Args:
            memories_used: memories read; 0: it did nothing.
            quality: as the model judges it, in 0..1.
            seconds: duration of the call.
        """
        if _compiling():
            self._add_compiled("reconstruction", (memories_used, quality, seconds))
            return
        extend = self._reconstruction
        if extend is None or _graph_task() != -1:
            return
        if (
            type(memories_used) is int
            and (quality is None or type(quality) is float)
            and (seconds is None or type(seconds) is float)
        ):
            extend((self._slot, memories_used, quality, seconds))
        elif type(seconds) is DeviceSeconds:
            self._add_late("reconstruction", seconds, 1)
            self.reconstruction(memories_used, quality)
        else:
            self._add_any("reconstruction", (memories_used, quality, seconds))

    def retrieval(
        self,
        requested: Number,
        returned: Number,
        hits: Number = None,
        seconds: Number = None,
        quality: Number = None,
    ) -> None:
        """Retrieval operations made in one call.

        Args:
            requested: operations; a batched call is one.
            returned: entries given back.
            hits: operations answered from a cache; None where there is none.
            seconds: duration of them all together.
            quality: as the model judges it, in 0..1.
        """
        if _compiling():
            self._add_compiled("retrieval", (requested, returned, hits, seconds, quality))
            return
        extend = self._retrieval
        if extend is None or _graph_task() != -1:
            return
        if (
            type(requested) is int
            and requested
            and type(returned) is int
            and (hits is None or type(hits) is int)
            and (seconds is None or type(seconds) is float)
            and (quality is None or type(quality) is float)
        ):
            extend((self._slot, requested, returned, hits, seconds, quality))
        elif type(seconds) is DeviceSeconds:
            self._add_late("retrieval", seconds, requested)
            self.retrieval(requested, returned, hits, quality=quality)
        else:
            self._add_any("retrieval", (requested, returned, hits, seconds, quality))

    def buffer(
        self,
        entries: Number,
        capacity: Number,
        nbytes: Number = None,
        evicted: Number = 0,
        *,
        cleared: Number = 0,
        loaded: Number = 0,
    ) -> None:
        """The buffer as it is now, and what left or entered it other than by capture.

        Args:
            entries: entries held now.
            capacity: entries that can be held at most.
            nbytes: payload of the entries held now, in bytes.
            evicted: entries dropped by policy since the last call.
            cleared: entries removed by an explicit clear since the last call.
            loaded: entries restored or imported since the last call.
        """
        if _compiling():
            self._add_compiled("buffer", (entries, capacity, nbytes, evicted, cleared, loaded))
            return
        extend = self._buffer
        if extend is None or _graph_task() != -1:
            return
        if (
            type(entries) is int
            and (capacity is None or type(capacity) is int)
            and (nbytes is None or type(nbytes) is int)
            and type(evicted) is int
            and type(cleared) is int
            and type(loaded) is int
        ):
            extend((self._slot, entries, capacity, nbytes, evicted, cleared, loaded))
        else:
            self._add_any("buffer", (entries, capacity, nbytes, evicted, cleared, loaded))

    def error(self, exc: BaseException) -> None:
        """An error that the model's memory met. Type and text are kept, the exception is not."""
        if _compiling():
            return
        if self._link is not None and _graph_task() == -1:
            self._link.error(exc)

    def timer(self, component: str = "timer") -> Timer | SectionTimer:
        """A context manager whose ``seconds`` is the time spent inside.

        None if nobody listens, and in the steps that ``monitoring.sample_every`` leaves out. Of a
        model on a GPU it is the device's time, which is known later: ``seconds`` is then a float
        that is NaN, and that the probe's methods know. Pass it on as it is.

        Args:
            component: what is timed, such as ``capture``, ``retrieval`` or ``reconstruction``: in a
                profile the time is shown under that name and the probe's layer.
        """
        if _compiling():
            return IdleTimer()  # made here: Dynamo enters only context managers it saw being made
        if self._sections is None:
            return self._timer
        # one of its own, for sections may be within each other
        return SectionTimer(self._sections, component, self._timer.another())

    # -- what a monitor calls ---------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a monitor listens."""
        return self._link is not None

    def attach(self, link: ProbeLink) -> None:
        """Start to record through a link."""
        self._link, self._slot = link, link.slot
        self._cells = None
        self._capture = link.extend("capture")
        self._reconstruction = link.extend("reconstruction")
        self._retrieval = link.extend("retrieval")
        self._buffer = link.extend("buffer")
        self.time_calls(on=True)

    def time_calls(self, *, on: bool, clock: DeviceClock | None = None) -> None:
        """Have `timer` measure from now on, or not.

        Args:
            on: whether it measures.
            clock: of the device; None: by the host's.
        """
        if not on:
            self._timer = IDLE
        else:
            self._timer = ProbeTimer() if clock is None else DeviceTimer(clock)

    def place(self, kind: str, row: CellRow) -> None:
        """Use a device row that is there before the first (compiled) call."""
        if self._cells is None:
            self._cells = {}
        self._cells[kind] = row

    def detach(self, link: ProbeLink) -> None:
        """Stop recording, if this link is the one in use."""
        if self._link is link:
            self._link = self._cells = None
            self._capture = self._reconstruction = self._retrieval = self._buffer = None
            self._timer = IDLE
            self._sections = None

    def show_sections(self, sections: Sections | None) -> None:
        """Have each timer be a section of the profile that is on; None: it is over."""
        self._sections = sections

    def _add_compiled(self, kind: str, fields: tuple[Number, ...]) -> None:
        cells = self._cells
        if cells is not None and kind in cells:
            cells[kind].add_compiled(fields)

    def _add_late(self, kind: str, seconds: DeviceSeconds, times: Number) -> None:
        """The duration comes later; of how many operations only the host can say."""
        if self._link is not None:
            known = float(times) if isinstance(times, (int, float)) else 0.0
            self._link.late(kind, seconds, known)

    def _add_any(self, kind: str, fields: tuple[Any, ...]) -> None:
        """Tensors to the device's row, the rest to be checked and kept on the host."""
        link = self._link
        if link is None:
            return
        tensors = [isinstance(value, Tensor) for value in fields]
        if not any(tensors):
            link.add_any(kind, fields)
            return
        host = [
            (ON_DEVICE if countable(value) else "a tensor that is no number")
            if is_tensor
            else value
            for value, is_tensor in zip(fields, tensors, strict=True)
        ]
        if kind == "retrieval" and host[0] is ON_DEVICE and fields[3] is not None:
            # whether there was an operation at all, only the device knows
            fields = (*fields[:3], (fields[0] > 0).double() * fields[3], fields[4])
            host[3] = ON_DEVICE
        self._to_devices(link, kind, fields, [value is ON_DEVICE for value in host])
        link.add_any(kind, host)

    def _to_devices(
        self, link: ProbeLink, kind: str, fields: tuple[Any, ...], there: list[bool]
    ) -> None:
        devices = {value.device for value, is_there in zip(fields, there, strict=True) if is_there}
        for device in devices:
            row = link.cells(kind, device)
            if kind == "buffer":
                for field in range(3):  # entries, capacity, nbytes
                    known = link.gauge(field) if there[field] else _NO_DATA
                    if known == known:
                        row.seed(field, known)
            # a tensor that lives elsewhere is only known to be given
            row.add(
                [
                    value
                    if not isinstance(value, Tensor) or (is_there and value.device == device)
                    else 0
                    for value, is_there in zip(fields, there, strict=True)
                ]
            )
