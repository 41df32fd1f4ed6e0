"""The examiner: brings together what the diagnostics look at, and remembers how it began."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from cmr_monitor_callbacks.config import DiagnosticsConfig
from cmr_monitor_callbacks.diagnostics import (
    MOST,
    Balance,
    Compared,
    Ghosts,
    HookConflict,
    HookMeasurement,
    Material,
    examine,
    hook_conflicts,
    list_hooks,
    measure_hooks,
)
from cmr_monitor_callbacks.distributed import Header
from cmr_monitor_callbacks.entries import LayerEntries, OwnCount
from cmr_monitor_callbacks.examining.beginning import EntryBooks, OwnCounters
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.probes.declared import declared
from cmr_monitor_callbacks.probes.entries import read_entries
from cmr_monitor_callbacks.probes.listening import Listening
from cmr_monitor_callbacks.probes.sparing import CannotCompare, LossOf, compare_memory
from cmr_monitor_callbacks.recording.ledger import Ledger
from cmr_monitor_callbacks.snapshot import Snapshot

_KEPT = 256
"""Comparisons with and without memory that a verdict is made of, the newest."""


class Examiner:
    """What one monitor knows of its model for the diagnostics.

    Nothing of it runs in a step: it looks when the model is attached and let go, at the borders of
    stages, and when it is asked.

    Args:
        config: what is looked at.
        ledger: what was counted.
        listening: what is listened to.
    """

    def __init__(self, config: DiagnosticsConfig, ledger: Ledger, listening: Listening) -> None:
        self._config = config
        self._ledger = ledger
        self._listening = listening
        self._model: Callable[[], nn.Module | None] = _nothing
        self._measured: HookMeasurement | None = None
        self._watched = 0
        self._attached = False
        self._begun_at = -1
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """The model does not go to another process along with its examiner."""
        return {**vars(self), "_model": _nothing}

    def forget(self) -> None:
        """A run begins anew; `begin` again if a model is attached."""
        self._books = EntryBooks(self._ledger)
        self._counters = OwnCounters()
        self._compiled: set[str] = set()
        self._known_hooks: set[int] = set()
        self._at_end: tuple[tuple[Balance, ...], tuple[OwnCount, ...]] | None = None
        self._compared: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._of_stage: list[tuple[float, float]] = []
        self._sent: list[tuple[float, float]] = []
        """Told to the other ranks, but not heard of them yet."""
        self._ghosts = Ghosts()
        self._reason = self._how = ""
        self.looked_at: int | None = None
        """The step at which the diagnostics ran last."""

    @property
    def is_attached(self) -> bool:
        """Whether a model is listened to now."""
        return self._attached and self.has_model

    @property
    def has_model(self) -> bool:
        """Whether there is a model to look at."""
        return self._model() is not None

    # -- how it was -------------------------------------------------------------------------

    def begin_again(self, snapshot: Callable[[], Snapshot]) -> None:
        """Numbers were taken over or forgotten: what was counted until now is the start."""
        model = self._model()
        if model is not None and self._attached:
            self.begin(model, snapshot)

    def attached(self, model: nn.Module, step: int, snapshot: Callable[[], Snapshot]) -> None:
        """A model is listened to; that is said again and again, and counts until the first step."""
        known = self._attached and self._model() is model
        if not known or step == self._begun_at:
            self.begin(model, snapshot)

    def begin(self, model: nn.Module, snapshot: Callable[[], Snapshot]) -> None:
        """Remember how a model is now: what comes later is a difference to it.

        Args:
            model: it is not kept alive.
            snapshot: gives the numbers of this moment.
        """
        self._model = weakref.ref(model)
        self._at_end = None
        self._attached = True
        self._watched = self._listening.found
        self.begin_books()
        numbers = snapshot()
        self._begun_at = numbers.step
        self._counters.begin(model, numbers)
        self._known_hooks = {hook.id for hook in list_hooks(model)}
        self._compiled = {
            path
            for path, module in model.named_modules()
            if getattr(module, "_compiled_call_impl", None) is not None
        }

    def begin_books(self) -> None:
        """Remember what is held now, and what was counted until now."""
        model = self._model()
        if model is not None:
            self._books.begin(self._entries(model, 0)[0])

    def end(self) -> None:
        """The model is let go: what it does from now on is not counted any more."""
        model = self._model()
        if model is not None and self._attached:
            self._attached = False
            entries, _ = self._entries(model, 0)
            self._at_end = self._books.balances(entries), self._counters.rises(model)

    def leave_training(self) -> None:
        """Another stage begins."""
        model = self._model()
        if model is not None:
            self._counters.leave_training(model)

    def back_in_training(self) -> None:
        """That stage is over."""
        model = self._model()
        if model is not None:
            self._counters.back_in_training(model)

    def look(self, window: int) -> None:
        """At the end of a window, every so many: see which entries are gone since the last look."""
        every = self._config.look_every
        if every and window % every == 0:
            self._look()

    def _look(self) -> None:
        model = self._model()
        if model is not None:
            self._ghosts.look(self._entries(model, MOST)[0])

    # -- with and without memory ------------------------------------------------------------

    @property
    def compares_every(self) -> int:
        """Every how many validation batches losses are compared; 0: never."""
        return 0 if self._reason else self._config.compare_memory_every

    def compare(self, model: nn.Module, loss_of: LossOf, own: Any) -> tuple[float, float] | None:
        """Take the loss of one batch with and without memory, and add both to the stage's.

        Args:
            model: nothing of it is changed.
            loss_of: gives a model's loss on the batch.
            own: the monitor, which the model may hold.

        Returns:
            the two; None where the memory is empty or the model cannot be compared, of which the
            reason becomes a finding.
        """
        try:
            found = compare_memory(model, loss_of, own)
        except CannotCompare as error:
            self._reason = str(error)
            return None
        except Exception as error:  # of the model's own code, on a copy of it
            self._reason = f"{type(error).__name__}: {error}"
            return None
        if found is None:
            return None
        one, other, self._how = found
        self._compared.append((one, other))
        self._of_stage.append((one, other))
        return one, other

    def send_compared(self) -> dict[str, float]:
        """What this rank tells the others of the losses compared until now: fields of `Header`."""
        self._sent += self._of_stage
        self._of_stage = []
        one, other = (sum(pair[i] for pair in self._sent) for i in (0, 1))
        return {"compared": float(len(self._sent)), "loss_with": one, "loss_without": other}

    def take_compared(self, headers: Sequence[Header] | None = None) -> dict[str, float]:
        """Means over all batches compared since the last call, by metric; none were: empty.

        Args:
            headers: what each rank sent; None: there is this one alone.
        """
        if headers is None:
            everybody: list[dict[str, Any]] = [self.send_compared()]
        else:  # what was compared since this rank sent goes with the next window
            everybody = [header._asdict() for header in headers]
        self._sent = []
        count = sum(said["compared"] for said in everybody)
        if not count:
            return {}
        one = sum(said["loss_with"] for said in everybody) / count
        other = sum(said["loss_without"] for said in everybody) / count
        return {"loss_with_memory": one, "loss_without_memory": other, "memory_gain": other - one}

    @contextmanager
    def measure_hooks(self, now: Callable[[], float]) -> Iterator[HookMeasurement]:
        """Time the model's hooks while it is called inside; the next diagnostics show it."""
        model = self._model()
        with measure_hooks(nn.Module() if model is None else model, now) as measured:
            yield measured
        self._measured = measured

    # -- looking ----------------------------------------------------------------------------

    def examine(
        self,
        snapshot: Snapshot,
        history: RunHistory | None,
        health: HealthReport,
        layer_globs: tuple[str, ...],
    ) -> dict[str, Any]:
        """Run every diagnostic; see `diagnostics.examine`."""
        self.looked_at = snapshot.step
        model = self._model()
        alone = snapshot.world_size == 1
        unknown = [] if alone else ["the other ranks' entries: each rank sees its own"]
        one, other = zip(*self._compared, strict=True) if self._compared else ((), ())
        material = Material(
            snapshot,
            history,
            health,
            measured=self._measured,
            layer_globs=layer_globs,
            watched=max(self._watched, self._listening.found, len(snapshot.layer_ids)),
            compared=Compared(tuple(one), tuple(other), self._reason, self._how),
            alone=alone,
        )
        balances, rises = self._at_end or ((), ())
        if model is None:
            unknown.insert(0, "what the model holds: the model is gone, or none was attached")
        else:
            entries, why = self._entries(model, self._config.entries_per_layer)
            if self._at_end is None:
                balances, rises = self._books.balances(entries), self._counters.rises(model)
            unknown += why + ([self._counters.unread] if self._counters.unread else [])
            if self._ledger.cells.in_use:
                unknown.append("books: a device counts, which is known at the end of a window")
            self._look()
            material = replace(
                material,
                entries=tuple(entries),
                hooks=tuple(list_hooks(model)),
                conflicts=self._conflicts(model),
                declared=declared(model),
            )
        return examine(
            replace(
                material,
                unknown=tuple(unknown),
                balances=balances,
                own_counts=tuple(self._counters.beside(snapshot, rises)) if alone else (),
                missed=self._ghosts.missed(),
            )
        )

    def _conflicts(self, model: nn.Module) -> tuple[HookConflict, ...]:
        return tuple(
            conflict
            for conflict in hook_conflicts(model, self._known_hooks, since_compiled=True)
            if conflict.kind != "after_compile" or conflict.module in self._compiled
        )

    def _entries(self, model: nn.Module, sample: int) -> tuple[list[LayerEntries], list[str]]:
        automatic = self._listening.automatic
        try:
            return read_entries(model, sample, automatic.watches(), automatic.named)
        except Exception as error:  # a memory that is not what it looks like
            return [], [f"entries: {type(error).__name__}: {error}"]


def _nothing() -> None:
    """There is no model."""
