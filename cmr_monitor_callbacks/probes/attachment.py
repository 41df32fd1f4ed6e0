"""The probes that one monitor listens to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import nn

from cmr_monitor_callbacks.probes.discovery import find_probes
from cmr_monitor_callbacks.probes.explicit import CMRProbe
from cmr_monitor_callbacks.probes.link import Link, OnError
from cmr_monitor_callbacks.recording.cells import CellRow
from cmr_monitor_callbacks.recording.device_clock import DeviceClock
from cmr_monitor_callbacks.recording.ledger import Ledger

logger = logging.getLogger(__name__)


class Attachment:
    """Attaches probes to a ledger and lets them go again.

    Args:
        ledger: where events go.
        kinds: kinds of event that are collected.
        watches: says whether a layer is watched.
        on_error: told of each error that a probe reports.
    """

    def __init__(
        self,
        ledger: Ledger,
        kinds: frozenset[str],
        watches: Callable[[Hashable | None], bool],
        on_error: OnError,
    ) -> None:
        self._ledger = ledger
        self._kinds = kinds
        self._watches = watches
        self._on_error = on_error
        self.links: list[Link] = []
        """Of the probes that are attached."""
        self._timed = True
        self.clock: DeviceClock | None = None
        """Of the device, where that times the probes' calls."""

    def __len__(self) -> int:
        return len(self.links)

    def attach(self, model: nn.Module) -> None:
        """Listen to the probes of a model; those attached already stay so.

        Raises:
            LayerError: two layers would be shown under one name.
        """
        mine = {id(link.probe) for link in self.links}
        for found in find_probes(model):
            if id(found.probe) not in mine and self._watches(found.probe.layer):
                self.links.append(self._link(found.probe, found.path))

    def _link(self, probe: CMRProbe, path: str) -> Link:
        if probe.attached:
            logger.warning("%s (%s) left another monitor for this one", probe, path)
        ledger = self._ledger
        slot = ledger.layout.column(probe.layer)
        link = Link(probe, path, slot, ledger.recorder, ledger.cells, self._kinds, self._on_error)
        probe.attach(link)
        probe.time_calls(on=self._timed, clock=self.clock)
        return link

    def time_calls(self, *, on: bool) -> None:
        """Have the probes' timers measure from now on, or not."""
        self._timed = on
        for link in self.links:
            link.probe.time_calls(on=on, clock=self.clock)

    def place_cells(self, device: torch.device) -> None:
        """Make the device rows of all probes in one tensor, before the first compiled call."""
        wanted = [
            (link, kind)
            for link in self.links
            for kind in link.kinds
            if not link.placed(kind, device)
        ]
        if not wanted:
            return
        rows: list[CellRow] = self._ledger.cells.allocate(
            device, [(kind, link.slot) for link, kind in wanted]
        )
        for (link, kind), row in zip(wanted, rows, strict=True):
            link.place(kind, device, row)

    def detach(self) -> None:
        """Let every probe go; the model is as it was before."""
        for link in self.links:
            link.probe.detach(link)
        self.links.clear()

    def source(self) -> str:
        """Where the numbers come from, for people."""
        paths = [link.path for link in self.links]
        if not paths:
            return ""
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"explicit:{paths[0]}{more}"
