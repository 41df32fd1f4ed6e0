"""What code tells that holds no probe: ``record_capture`` and ``record_reconstruction``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from typing import Any

from cmr_monitor_callbacks.recording.ledger import Ledger


def _nothing() -> Collection[str]:
    return ()


class Hearsay:
    """Records what is told, but for what is seen anyway.

    Args:
        ledger: where numbers go.
        kinds: components that are collected.
        watches_layer: says whether a layer is watched.

    Attributes:
        seen: gives what is seen without being told: ``calls``, ``capture``, ``reconstruction``.
    """

    def __init__(
        self,
        ledger: Ledger,
        kinds: frozenset[str],
        watches_layer: Callable[[Hashable | None], bool],
    ) -> None:
        self._ledger = ledger
        self._kinds = kinds
        self._watches_layer = watches_layer
        self.seen: Callable[[], Collection[str]] = _nothing

    def capture(
        self,
        layer_idx: Hashable,
        states_stored: int,
        capture_time: float | None,
        *,
        states_captured: int | None = None,
        states_attempted: int | None = None,
    ) -> None:
        """One capture call; see `CMRPerformanceMonitor.record_capture`."""
        seen = self.seen()
        if "calls" in seen:
            return  # who tells of its calls is seen calling
        fields: tuple[Any, ...] = (states_attempted, states_captured, states_stored)
        if "capture" in seen:
            fields = (None, None, None)
        self._record("capture", layer_idx, (*fields, capture_time, None))

    def reconstruction(
        self, layer_idx: Hashable, memories_used: int, reconstruction_time: float | None
    ) -> None:
        """One call of it; see `CMRPerformanceMonitor.record_reconstruction`."""
        if "reconstruction" in self.seen():
            return
        self._record("reconstruction", layer_idx, (memories_used, None, reconstruction_time))

    def _record(self, kind: str, layer: Hashable, fields: tuple[Any, ...]) -> None:
        if kind in self._kinds and self._watches_layer(layer):
            slot = self._ledger.layout.column(layer)
            self._ledger.recorder.add_any(kind, slot, fields)
