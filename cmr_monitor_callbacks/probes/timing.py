"""By which clock calls are timed: the host's, or that of the CUDA device that holds the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.recording.device_clock import DeviceClock, cuda_clock, cuda_device_of
from cmr_monitor_callbacks.recording.late import LateTimes
from cmr_monitor_callbacks.recording.phases import DeviceStepTimer, StepTimer
from cmr_monitor_callbacks.recording.recorder import Recorder

logger = logging.getLogger(__name__)
_TIMED: Final = ("capture", "reconstruction", "retrieval")
_PHASES: Final = (
    *("avg_forward_time", "total_forward_time", "avg_latency"),
    *("backward_time", "optimizer_time"),
)
_WATCHED: Final = ("wrapped:", "hook:")
"""How sources begin whose calls are timed here; others have their durations from the model."""
_LABEL: Final = "cuda events"


class Timing:
    """Chooses the clock when a model is attached, and says which it is.

    Args:
        mode: ``auto``, ``host`` or ``device``, as in ``monitoring.timing``.
        now: the host's clock, in seconds.
        recorder: given the durations of a device.
        make: makes the clock of a device.
        find: says on which device a model is timed; None: by the host.

    Attributes:
        timed: what reads the time of calls that begin now; None: they are not timed. A list of one,
            for the functions that ask hold it.
    """

    def __init__(
        self,
        mode: str,
        now: Callable[[], float],
        recorder: Recorder,
        make: Callable[[torch.device], DeviceClock] = cuda_clock,
        find: Callable[[nn.Module], torch.device | None] = cuda_device_of,
    ) -> None:
        self._mode = mode
        self._host = now
        self._recorder = recorder
        self._make = make
        self._find = find
        self._device: torch.device | None = None
        self._on = True
        self._lost = 0
        self._shown: frozenset[str] = frozenset()
        self.timed: list[Any] = [now]
        self.clock: DeviceClock | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has the host's clock until it chooses."""
        return {**vars(self), "_device": None, "clock": None}

    def choose(self, model: nn.Module) -> bool:
        """Take the clock of the device that holds a model; says whether it is another one now."""
        device = None if self._mode == "host" else self._find(model)
        late = self._recorder.late
        if device == self._device and (late is None or self.clock is not None):
            if device is None and self._mode == "device":
                logger.warning(
                    "monitoring.timing is 'device', but the model is not on one CUDA device: "
                    "calls are timed by the host's clock"
                )
            return False
        self.close()
        if late is not None:
            self._lost += late.dropped
            self._recorder.late = None
        if device is not None:
            self._device, self.clock = device, self._make(device)
            self._recorder.late = LateTimes(self.clock)
        self.switch(on=self._on)
        return True

    def switch(self, *, on: bool) -> None:
        """Time the calls that begin from now on, or leave that out."""
        self._on = on
        now = self._host if self.clock is None else self.clock.now
        self.timed[0] = now if on else None

    def close(self) -> None:
        """Back to the host's clock; what is known by now is taken, what is under way is lost."""
        if self.clock is not None:
            self.clock.close()
        self._device = self.clock = None
        self.switch(on=self._on)

    @property
    def dropped(self) -> int:
        """Durations of a device that were lost, since this was made."""
        late = self._recorder.late
        return self._lost + (0 if late is None else late.dropped)

    def step_timer(self) -> StepTimer:
        """A stopwatch for the phases of a step."""
        late = self._recorder.late
        if self.clock is None or late is None:
            return StepTimer()
        return DeviceStepTimer(self.clock.now, late.add)

    def begin(self) -> Any:
        """Before a forward that a plain loop times; None by the host's clock."""
        return None if self.clock is None else self.clock.now()

    def end(self, start: Any, seconds: float) -> float | None:
        """After it: its seconds by the host's clock, or None where the device's come later."""
        if self.clock is None or self._recorder.late is None:
            return seconds
        end = None if start is None else self.clock.now()
        if end is not None:
            self._recorder.late.add("forward_time", 0, (end - start,))
        return None

    # -- telling ----------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether probes gave durations of a component that gave none when it was last told."""
        late = self._recorder.late
        return late is not None and not late.probed <= self._shown

    def look(self) -> None:
        """What probes gave until now is going to be told."""
        late = self._recorder.late
        self._shown = frozenset() if late is None else frozenset(late.probed)

    def told(self, sources: Mapping[str, str]) -> Mapping[str, str]:
        """Where numbers come from; those of a device's clock say so.

        Args:
            sources: by metric or component.
        """
        late = self._recorder.late
        if late is None:
            return sources
        out = dict(sources)
        for kind in _TIMED:
            name = f"avg_{kind}_time"
            base = sources.get(name) or sources.get(kind, "")
            if base.startswith(_WATCHED) or (kind in late.probed and base.startswith("explicit:")):
                out[name] = out[f"{kind}_time"] = f"{base}, {_LABEL}"
        if "timing" in sources:
            out.update(dict.fromkeys(_PHASES, f"{sources['timing']}, {_LABEL}"))
        return out
