"""Where a watch puts what it sees: the tally, the errors, and what is under way in this thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Final

import torch

from cmr_monitor_callbacks.recording.ledger import Ledger
from cmr_monitor_callbacks.recording.tally import PLACES

graph_task: Final = torch._C._current_graph_task_id
"""-1 outside of a backward: inside, a forward is the recompute of activation checkpointing."""
compiling: Final = (
    torch.compiler.is_dynamo_compiling
    if hasattr(torch.compiler, "is_dynamo_compiling")
    else torch.compiler.is_compiling
)
OnError = Callable[[Hashable | None, BaseException], None]
OnFailure = Callable[[str, Exception], None]


class Scope(threading.local):
    """What a thread is in the middle of, so that a call inside a call is not counted twice."""

    retrieving = False
    reconstructing = False
    capturing = False
    layer: Any = None
    """Of the capture under way."""
    storing: Any = None
    """The buffer watch whose store is under way."""
    clearing = False
    loading = False
    stored = 0
    """Calls of a store that were counted; an outer one counts only if no inner one did."""
    error = 0
    """Identity of the exception on its way up, counted where it began."""


class Report:
    """Gives watches their places in the tally.

    Args:
        ledger: where numbers go.
        kinds: components that are collected.
        watches: says whether a layer is watched.
        now: a clock, in seconds.
        on_error: told of each error of the model.
        on_failure: told where a watch itself failed.
    """

    def __init__(
        self,
        ledger: Ledger,
        kinds: frozenset[str],
        watches: Callable[[Hashable | None], bool],
        now: Callable[[], float],
        on_error: OnError,
        on_failure: OnFailure,
    ) -> None:
        self._ledger = ledger
        self._watches = watches
        self._on_error = on_error
        self.failed = on_failure
        self.kinds = kinds
        self.now = now
        self.scope = Scope()
        self.extend = ledger.recorder.tally.extend
        self._places: dict[Any, int | None] = {}

    def place(self, layer: Hashable | None) -> int | None:
        """Where the places of a layer begin; None: that layer is not watched.

        Raises:
            LayerError: two layers would be shown under one name.
        """
        try:
            return self._places[layer]
        except KeyError:
            pass
        except TypeError:  # an unhashable id
            layer = str(layer)
        if isinstance(layer, torch.Tensor):
            layer = int(layer) if layer.device.type == "cpu" and layer.numel() == 1 else str(layer)
        found = None
        if self._watches(layer):
            found = self._ledger.layout.column(layer) * PLACES
        if len(self._places) < 10_000:
            self._places[layer] = found
        return found

    def column(self, layer: Hashable | None) -> int:
        """The column of a layer."""
        return self._ledger.layout.column(layer)

    def came(self, column: int) -> float:
        """Entries that came less those that went, as far as this process was told until now."""
        came = self._ledger.came
        return float(came[column]) if column < len(came) else 0.0

    def fold(self) -> None:
        """Work out what was recorded until now."""
        self._ledger.fold()

    def error(self, layer: Hashable | None, exc: BaseException) -> None:
        """Count an error of the model once, however many watched calls it passes through."""
        if not isinstance(exc, Exception) or self.scope.error == id(exc):
            return
        self.scope.error = id(exc)
        if "errors" in self.kinds:
            self._on_error(layer, exc)
