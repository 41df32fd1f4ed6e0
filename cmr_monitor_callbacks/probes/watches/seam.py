"""The model's own performance monitor: an object that is told of captures and reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmr_monitor_callbacks.probes.survey import Part
from cmr_monitor_callbacks.probes.watches.base import BaseWatch, Ways, guarded
from cmr_monitor_callbacks.probes.wrapping import Call

Told = Callable[..., None]


class SeamWatch(BaseWatch):
    """Listens to what the model tells its own monitor.

    Args:
        part: the model's monitor.
        capture: told as ``record_capture(layer_idx, states_stored, capture_time)``.
        reconstruction: told as ``record_reconstruction(layer_idx, memories_used,
            reconstruction_time)``.
    """

    def __init__(self, part: Part, capture: Told, reconstruction: Told) -> None:
        super().__init__(part)
        self._told = {"record_capture": capture, "record_reconstruction": reconstruction}

    def install(self, ways: Ways) -> None:
        """Wrap its methods."""
        if not ways.wrap:
            return
        kinds = ways.report.kinds
        if ways.calls_by == "monitor" and "capture" in kinds:
            self._wrap(ways, "record_capture")
            self.source("", "wrapped", "record_capture", "capture_calls", "avg_capture_time")
        if not ways.reconstructs and "reconstruction" in kinds:
            self._wrap(ways, "record_reconstruction")
            self.source("reconstruction", "wrapped", "record_reconstruction")

    def _wrap(self, ways: Ways, name: str) -> None:
        told = self._told[name]

        def pass_on(args: Any, kwargs: Any) -> None:
            told(*args, **kwargs)

        safely = guarded(ways.report, f"{self.path}.{name}", pass_on)

        def make(original: Call) -> Call:
            def record(_: Any, /, *args: Any, **kwargs: Any) -> Any:
                out = original(*args, **kwargs)
                safely(args, kwargs)
                return out

            return record

        ways.replace(self._owner(), name, make)
