"""Durations that come after their event: those of a device, which nobody waits for.

The event is counted when it happens, as one that was not timed. Its duration comes to the window in
which it becomes known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.catalogue import TIMERS
from cmr_monitor_callbacks.folding import Durations
from cmr_monitor_callbacks.layer_histograms import LAYER_TIMERS
from cmr_monitor_callbacks.packed import ROW, TIMER_ROW, Packed
from cmr_monitor_callbacks.recording.device_clock import DeviceClock, DeviceSeconds
from cmr_monitor_callbacks.recording.tally import PLACES, TIMER_OF_CALL, UNTIMED

_COUNTED: Final = {"retrieval_time": "retrievals_timed", "forward_time": "passes_timed"}
"""By timer, the statistic of how many were timed, where a duration may be of several."""
_ROWS: Final = {
    row: (
        ROW[f"{name.removesuffix('_time')}_seconds"],
        ROW[_COUNTED[name]] if name in _COUNTED else None,
    )
    for name, row in TIMER_ROW.items()
}
"""By timer, the statistics that a duration adds to: its seconds, and how many were timed."""


@dataclass(frozen=True)
class _Waiting:
    timer: int
    column: int
    parts: Sequence[DeviceSeconds]
    times: float
    watched: bool


class LateTimes:
    """Durations that are under way, each with the place where it belongs.

    Args:
        clock: of the device.

    Attributes:
        probed: components of which a probe gave any.
    """

    def __init__(self, clock: DeviceClock) -> None:
        self.clock = clock
        self.probed: set[str] = set()
        self._waiting: list[_Waiting] = []
        self._dropped = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return LateTimes, (self.clock,)  # in a copy nothing is under way

    @property
    def dropped(self) -> int:
        """Samples that were lost: none of them was waited for."""
        return self.clock.dropped + self._dropped

    def add(
        self,
        timer: str,
        column: int,
        parts: Sequence[DeviceSeconds],
        times: float = 1.0,
        *,
        watched: bool = False,
    ) -> None:
        """A duration will be known later.

        Args:
            timer: its name in ``catalogue.TIMERS``.
            column: of the layer.
            parts: it is the sum of these.
            times: operations that took so long together.
            watched: whether it was seen by watching, and counts only where no probe speaks.
        """
        self._waiting.append(_Waiting(TIMER_ROW[timer], column, parts, times, watched))

    def add_probed(self, component: str, column: int, seconds: DeviceSeconds, times: float) -> None:
        """Likewise, of a probe's call; one of no operation has no time."""
        self.probed.add(component)
        if times > 0:
            self.add(f"{component}_time", column, (seconds,), times)

    def harvest(self) -> None:
        """Ask after all durations; on the thread that makes them alone."""
        self.clock.harvest()

    def settled(self, items: Sequence[Any]) -> list[Any]:
        """A tally with the durations that are known; the other calls are not timed until later."""
        out = list(items)
        for at in [i for i, item in enumerate(out) if type(item) is DeviceSeconds]:
            seconds: DeviceSeconds = out[at]
            if seconds.seconds is not None:
                out[at] = seconds.seconds
                continue
            column, place = divmod(out[at - 1], PLACES)
            out[at - 1 : at + 1] = column * PLACES + UNTIMED[place], 0
            if seconds.pending:
                self.add(TIMER_OF_CALL[place], column, (seconds,), watched=True)
        return out

    def take(self, packed: Packed, durations: Durations, without: Collection[str]) -> bool:
        """Add what has become known; never waits.

        Args:
            packed: added to, in place.
            durations: given the durations.
            without: components of which nothing that was watched is taken.

        Returns:
            whether anything was added.
        """
        ready: list[_Waiting] = []
        kept: list[_Waiting] = []
        # whoever times a call on another thread meanwhile adds to the end
        count = len(self._waiting)
        for one in self._waiting[:count]:
            (kept if any(part.pending for part in one.parts) else ready).append(one)
        self._waiting[:count] = kept
        taken = False
        for one in ready:
            seconds = [part.seconds for part in one.parts]
            known = [value for value in seconds if value is not None]
            if len(known) < len(seconds) or (one.watched and TIMERS[one.timer][0] in without):
                continue  # what was lost has been counted
            taken = True
            self._put(packed, durations, one, sum(known))
        return taken

    @staticmethod
    def _put(packed: Packed, durations: Durations, one: _Waiting, seconds: float) -> None:
        row, counted = _ROWS[one.timer]
        packed.widen(one.column + 1)
        packed.values[row, one.column] += seconds
        packed.samples[row, one.column] += 1
        if counted is not None:
            packed.values[counted, one.column] += one.times
            packed.samples[counted, one.column] += 1
        each = np.array([seconds / one.times]), np.array([one.times])
        durations.append((one.timer, *each))
        if packed.by_layer is not None and one.timer < len(LAYER_TIMERS):
            packed.by_layer.put(one.timer, np.array([one.column]), *each)

    def drop(self) -> None:
        """Give up what is under way: it would come to a stage that it is not of."""
        self._dropped += len(self._waiting)
        self._waiting.clear()

    def forget(self) -> None:
        """Likewise, where all numbers are forgotten: that is no loss."""
        self._waiting.clear()
