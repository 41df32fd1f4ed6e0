"""Where a watch puts what it sees: the tally, the errors, and what is under way in this thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from types import CodeType
from typing import Any, Final

import torch
from torch import nn

from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.recording.ledger import Ledger
from cmr_monitor_callbacks.recording.tally import PLACES

logger = logging.getLogger(__name__)
graph_task: Final = torch._C._current_graph_task_id
"""-1 outside of a backward: inside, a forward is the recompute of activation checkpointing."""
compiling: Final = (
    torch.compiler.is_dynamo_compiling
    if hasattr(torch.compiler, "is_dynamo_compiling")
    else torch.compiler.is_compiling
)
OnError = Callable[[str, Hashable | None, BaseException], None]
"""Told the component, the layer, and the error."""
OnFailure = Callable[[str, Exception], None]
Amounts = tuple[int | None, int | None]
"""Samples and token positions; None: not known."""
NOTHING: Final[Amounts] = None, None

LOADING: Final = object()
"""What a store within a load is part of."""


class UnderWay:
    """What a thread is in the middle of, so that a call inside a call is not counted twice.

    Attributes:
        retrieving: a retrieval.
        reconstructing: a reconstruction; ``began`` is when it did, by ``clock``; None where it is
            not timed.
        capturing: a capture method; ``layer`` is its layer.
        storing: the watch of the buffer whose store is under way, or `LOADING`.
        clearing: an explicit clear.
        inserted: entries that stores put into their buffers so far.
        stored: calls of a store counted so far; an outer one counts only if no inner one did.
        passing: the watch of the forward under way.
        entered: how much entered the model since the step began.
    """

    __slots__ = (
        "began",
        "capturing",
        "clearing",
        "clock",
        "entered",
        "inserted",
        "layer",
        "passing",
        "reconstructing",
        "retrieving",
        "stored",
        "storing",
    )

    def __init__(self) -> None:
        self.retrieving = self.capturing = self.clearing = self.reconstructing = False
        self.began: Any = None
        self.clock: Any = None
        self.layer: Any = None
        self.storing: Any = None
        self.passing: Any = None
        self.entered = NOTHING
        self.stored = self.inserted = 0


_UNSEEN: Final = {
    "capture": ("capture", "buffer", "moves"),
    "retrieval": ("retrieval", "matches"),
    "reconstruction": ("reconstruction", "similarity"),
}


class Scope(threading.local):
    """Each thread's `UnderWay`.

    A look at a thread's own storage takes twice as long as asking which thread this is: what is
    called in every step keeps the one of the thread that attached.
    """

    def __init__(self) -> None:
        self.now = UnderWay()

    def __reduce__(self) -> tuple[Any, ...]:
        return Scope, ()  # in another process nothing is under way


class Report:
    """Gives watches their places in the tally.

    Args:
        ledger: where numbers go.
        kinds: components that are collected.
        watches: says whether a layer is watched.
        timed: the clock of the calls that begin now, see ``timed``.
        on_error: told of each error of the model.
        on_failure: told where a watch itself failed.
    """

    def __init__(
        self,
        ledger: Ledger,
        kinds: frozenset[str],
        watches: Callable[[Hashable | None], bool],
        timed: list[Any],
        on_error: OnError,
        on_failure: OnFailure,
    ) -> None:
        self._ledger = ledger
        self.watches = watches
        """Says whether a layer is watched."""
        self._on_error = on_error
        self.failed = on_failure
        self.kinds = kinds
        self.timed = timed
        """What reads the time of calls that begin now, in seconds or as a device's `Moment`; None:
        they are not timed (a list of one, for the functions that ask hold it)."""
        self.scope = Scope()
        self.tally = ledger.recorder.tally
        self.extend = self.tally.extend
        self.codes: set[CodeType] = set()
        """Of the functions that stand in for methods."""
        self._told: set[str] = set()
        self._open = True
        self.settle: Callable[[], None] = lambda: None
        """Accounts for what came and went past the buffers' methods until now."""
        self.blind = {kind: [False] for kind in ("capture", "retrieval", "reconstruction")}
        """Of which kinds there are calls in compiled code, which cannot be seen (a list each, for
        that is what Dynamo can write to)."""
        self.hooked: set[int] = set()
        """Identities of the modules whose hooks tell of errors."""
        self.places: dict[Any, int | None] = {}
        """Where the places of the layers seen so far begin; see `place`."""

    def entered(self, layer: Hashable | None) -> bool:
        """Whether anything came into a layer, as far as this process was told until `came`."""
        return self.column(layer) in self._ledger.entered

    def close(self) -> None:
        """Take nothing more: somebody may hold a method that was replaced."""
        self._open = False
        self.places.clear()
        self.kinds = frozenset()

    def distrust_what_is_compiled(self) -> bool:
        """Take no more of kinds of which some calls are not seen.

        Returns:
            whether what is stored is among them.
        """
        for kind, blind in self.blind.items():
            if blind[0] and kind not in self._told:
                self._told.add(kind)
                logger.warning(
                    "some calls of the %s are in compiled code, where they cannot be seen: there "
                    "is no data of it; hold a CMRProbe there, or leave it out of the compiled code",
                    kind,
                )
            if blind[0]:
                self._ledger.distrust(_UNSEEN[kind])
        # what a probe says of captures is not what the watches count
        return self.blind["capture"][0] or "capture" in self._ledger.recorder.spoken

    def leave_out(self, *components: str) -> None:
        """Of these nothing is collected, though a watch may come upon it."""
        self._ledger.distrust(components)

    def put(self, at: int, statistic: str, number: float) -> None:
        """Put a number where it belongs; for what is not in every step.

        Args:
            at: what `place` gives for a layer.
            statistic: its name in ``catalogue.STATISTICS``; a gauge keeps the last, others add.
            number: finite, and at least 0.
        """
        self.extend((at + ROW[statistic], number))

    @property
    def stage(self) -> Any:
        """What stands for the stage that is recorded now, and for no other."""
        return self._ledger.current

    def place(self, layer: Hashable | None) -> int | None:
        """Where the places of a layer begin; None: that layer is not watched.

        Raises:
            LayerError: two layers would be shown under one name.
        """
        try:
            return self.places[layer]
        except KeyError:
            pass
        except TypeError:  # an unhashable id
            layer = str(layer)
        if isinstance(layer, torch.Tensor):
            layer = int(layer) if layer.device.type == "cpu" and layer.numel() == 1 else str(layer)
        found = None
        if self._open and self.watches(layer):
            found = self._ledger.layout.column(layer) * PLACES
        if len(self.places) < 10_000:
            self.places[layer] = found
        return found

    def live(self, layer: Hashable | None, *rows: int) -> None:
        """What counts these counters of a layer is there: without an event they are 0."""
        if self.place(layer) is not None:
            self._ledger.declare_live(rows, self.column(layer))

    def column(self, layer: Hashable | None) -> int:
        """The column of a layer."""
        return self._ledger.layout.column(layer)

    def came(self) -> Callable[[Hashable | None], float]:
        """Entries that came less those that went until now, as a function of the layer."""
        self._ledger.keeps_books = True
        self._ledger.fold()
        came = self._ledger.came.copy()

        def of(layer: Hashable | None) -> float:
            column = self.column(layer)
            return float(came[column]) if column < len(came) else 0.0

        return of

    def error(
        self,
        component: str,
        layer: Hashable | None,
        exc: BaseException,
        module: nn.Module | None = None,
    ) -> None:
        """Count an error of the model once, however many watched calls it passes through.

        Args:
            component: whose call raised it.
            layer: where it was raised.
            exc: the error.
            module: whose hook tells of it.
        """
        if not isinstance(exc, Exception) or "errors" not in self.kinds:
            return
        if not self._was_counted(exc, module):
            self._on_error(component, layer, exc)

    def _was_counted(self, exc: BaseException, module: nn.Module | None) -> bool:
        """Whether it came through a watched call further in, which counted it.

        A mark on the exception would change it, and its identity may be another's soon. A call that
        is only passed on has not begun to measure: it has no ``start``.
        """
        frames = None if exc.__traceback__ is None else exc.__traceback__.tb_next
        while frames is not None:
            frame = frames.tb_frame
            if frame.f_code in self.codes and "start" in frame.f_locals:
                return True
            called = frame.f_locals.get("self")
            if called is not module and id(called) in self.hooked:
                return True
            frames = frames.tb_next
        return False
