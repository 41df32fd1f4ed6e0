"""What ties one probe to one monitor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cmr_monitor_callbacks.probes.explicit import CMRProbe, Extend
from cmr_monitor_callbacks.recording.cells import KINDS, CellRow, DeviceCells
from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds
from cmr_monitor_callbacks.recording.recorder import Recorder

OnError = Callable[["Link", BaseException], None]


class Link:
    """Gives a probe its sinks, its device rows and a place for errors.

    Args:
        probe: the probe.
        path: where it is in the model, for people.
        slot: column of its layer.
        recorder: where host events go.
        cells: where device numbers go.
        kinds: kinds of event that are collected.
        on_error: told of each error.
    """

    def __init__(
        self,
        probe: CMRProbe,
        path: str,
        slot: int,
        recorder: Recorder,
        cells: DeviceCells,
        kinds: frozenset[str],
        on_error: OnError,
    ) -> None:
        self.probe = probe
        self.path = path
        self.slot = slot
        self._recorder = recorder
        self._cells = cells
        self._kinds = kinds
        self._on_error = on_error
        self._rows: dict[tuple[str, torch.device], CellRow] = {}

    @property
    def kinds(self) -> list[str]:
        """Kinds of event that are collected, of those that a device can count."""
        return [kind for kind in KINDS if kind in self._kinds]

    def extend(self, kind: str) -> Extend | None:
        """See `ProbeLink.extend`."""
        return self._recorder.lists[kind].extend if kind in self._kinds else None

    def gauge(self, field: int) -> float:
        """See `ProbeLink.gauge`."""
        return self._recorder.gauge(field, self.slot)

    def add_any(self, kind: str, fields: Sequence[Any]) -> None:
        """See `ProbeLink.add_any`."""
        self._recorder.spoken.add(kind)
        self._recorder.add_any(kind, self.slot, fields)

    def late(self, kind: str, seconds: DeviceSeconds, times: float) -> None:
        """See `ProbeLink.late`."""
        late = self._recorder.late
        if late is not None and kind in self._kinds:
            late.add_probed(kind, self.slot, seconds, times)

    def cells(self, kind: str, device: torch.device) -> CellRow:
        """See `ProbeLink.cells`; a row that is not there is made."""
        row = self._rows.get((kind, device))
        if row is None:
            row = self._cells.allocate(device, [(kind, self.slot)])[0]
            self._rows[kind, device] = row
        return row

    def placed(self, kind: str, device: torch.device) -> bool:
        """Whether a row is there already."""
        return (kind, device) in self._rows

    def place(self, kind: str, device: torch.device, row: CellRow) -> None:
        """Keep a row made beforehand, for compiled code too."""
        self._rows[kind, device] = row
        self.probe.place(kind, row)

    def error(self, exc: BaseException) -> None:
        """See `ProbeLink.error`."""
        if "errors" in self._kinds:
            self._recorder.add_any("errors", self.slot, (1, None, None))
            self._on_error(self, exc)
