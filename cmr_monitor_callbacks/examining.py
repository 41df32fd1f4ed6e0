"""The examiner: brings together what the diagnostics look at, and remembers how it began."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cmr_monitor_callbacks.config import DiagnosticsConfig
from cmr_monitor_callbacks.diagnostics import (
    MOST,
    Balance,
    Compared,
    Ghosts,
    HookMeasurement,
    Material,
    examine,
    hook_conflicts,
    list_hooks,
    measure_hooks,
)
from cmr_monitor_callbacks.entries import Declared, LayerEntries, OwnCount
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.history import RunHistory
from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.probes.declared import declared, own_counts
from cmr_monitor_callbacks.probes.entries import read_entries
from cmr_monitor_callbacks.probes.listening import Listening
from cmr_monitor_callbacks.probes.sparing import CannotCompare, LossOf, compare_memory
from cmr_monitor_callbacks.recording.ledger import MOVES, Ledger
from cmr_monitor_callbacks.snapshot import Snapshot

_KEPT = 256
"""Comparisons with and without memory that a verdict is made of, the newest."""
_GAUGES = ("total_entries",)


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
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._measured: HookMeasurement | None = None
        self._watched = 0
        self._attached = False
        self._begun_at = -1
        self.forget()

    def forget(self) -> None:
        """A run begins anew; `begin` again if a model is attached."""
        self._held: dict[Hashable, int] = {}
        self._moves: dict[Hashable, list[int]] = {}
        self._counts: dict[tuple[str, Hashable | None], float] = {}
        self._before_stage: dict[tuple[str, Hashable | None], float] | None = None
        self._counted_at_start: Callable[[OwnCount], float] = lambda one: 0.0
        self._compiled: set[str] = set()
        self._known_hooks: set[int] = set()
        self._frozen: tuple[tuple[Balance, ...], tuple[OwnCount, ...]] | None = None
        self._compared: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._ghosts = Ghosts()
        self._reason = self._how = self._unread = ""

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
        self._frozen = None
        self._before_stage = None
        self._attached = True
        self._ledger.keeps_books = True
        self._watched = self._listening.found
        self.begin_books()
        self._counts = self._own_counts(model)
        numbers = snapshot()
        self._begun_at = numbers.step
        self._counted_at_start = lambda one: numbers.value(one.metric, layer=one.layer)  # type: ignore[arg-type]
        self._known_hooks = {hook.id for hook in list_hooks(model)}
        self._compiled = {
            path
            for path, module in model.named_modules()
            if getattr(module, "_compiled_call_impl", None) is not None
        }

    def begin_books(self) -> None:
        """Remember what is held now, and what was counted until now."""
        model = self._model()
        if model is None:
            return
        self._ledger.fold()
        self._held = {one.layer: one.count for one in self._entries(model, 0)[0]}
        self._moves = {
            layer: self._moves_of(layer) for layer in (*self._ledger.layout.layers, *self._held)
        }

    def end(self) -> None:
        """The model is let go: what it does from now on is not counted any more."""
        model = self._model()
        if model is not None and self._attached:
            self._attached = False
            entries, _ = self._entries(model, 0)
            self._frozen = self._balances(entries), tuple(self._rises(model))

    def leave_training(self) -> None:
        """Another stage begins, whose work the model counts as it counts training's."""
        model = self._model()
        self._before_stage = None if model is None else self._own_counts(model)

    def back_in_training(self) -> None:
        """That stage is over."""
        model, before = self._model(), self._before_stage
        if model is not None and before is not None:
            for key, value in self._own_counts(model).items():
                self._counts[key] = self._counts.get(key, 0.0) + value - before.get(key, 0.0)
        self._before_stage = None

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
        """Take the loss of one batch with and without memory, and add both to the stage's numbers.

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
        for name, value in (
            ("loss_with_memory", one),
            ("loss_without_memory", other),
            ("memory_gain", other - one),
        ):
            self._ledger.recorder.tally.extend((ROW[f"{name}_sum"], value))
        return one, other

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
        model, alone = self._model(), snapshot.world_size == 1
        entries: list[LayerEntries] = []
        unknown = [] if alone else ["the other ranks' entries: each rank sees its own"]
        if model is None:
            unknown.insert(0, "what the model holds: the model is gone, or none was attached")
        else:
            entries, why = self._entries(model, self._config.entries_per_layer)
            unknown += why
            self._look()
        balances, rises = self._frozen or ((), ())
        if self._frozen is None and model is not None:
            balances, rises = self._balances(entries), tuple(self._rises(model))
            unknown += [self._unread] if self._unread else []
        one, other = zip(*self._compared, strict=True) if self._compared else ((), ())
        compiled_since = self._compiled if model is not None else set()
        return examine(
            Material(
                snapshot,
                history,
                health,
                tuple(entries),
                tuple(unknown),
                () if model is None else tuple(list_hooks(model)),
                ()
                if model is None
                else tuple(
                    conflict
                    for conflict in hook_conflicts(model, self._known_hooks, since_compiled=True)
                    if conflict.kind != "after_compile" or conflict.module in compiled_since
                ),
                self._measured,
                tuple(self._beside(snapshot, rises)) if alone else (),
                tuple(balances),
                Declared() if model is None else declared(model),
                layer_globs,
                max(self._watched, self._listening.found, len(snapshot.layer_ids)),
                Compared(tuple(one), tuple(other), self._reason, self._how),
                self._ghosts.missed(),
                alone,
            )
        )

    def _entries(self, model: nn.Module, sample: int) -> tuple[list[LayerEntries], list[str]]:
        automatic = self._listening.automatic
        return read_entries(model, sample, automatic.watches(), automatic.named)

    def _balances(self, entries: list[LayerEntries]) -> tuple[Balance, ...]:
        self._ledger.fold()
        if self._ledger.cells.in_use:
            return ()  # what a device counts is known at the end of a window alone
        held: dict[Hashable, int] = {}
        for one in entries:
            held[one.layer] = held.get(one.layer, 0) + one.count
        balances = []
        for layer in self._ledger.layout.layers:
            at_first = self._moves.get(layer, [0] * len(MOVES))
            moved = [now - then for now, then in zip(self._moves_of(layer), at_first, strict=True)]
            start = self._held.get(layer, 0) if layer in held or layer in self._held else None
            came, loaded, evicted, overwritten, merged, cleared = moved
            balances.append(
                Balance(
                    layer,
                    start,
                    came,
                    loaded,
                    evicted,
                    overwritten,
                    merged,
                    cleared,
                    held.get(layer, None if start is None else 0),
                )
            )
        return tuple(balances)

    def _moves_of(self, layer: Hashable) -> list[int]:
        ledger = self._ledger
        if layer not in ledger.layout.layers:
            return [0] * len(MOVES)
        column = ledger.layout.column(layer)
        if column >= ledger.moves.shape[1]:
            return [0] * len(MOVES)
        return [int(count) for count in ledger.moves[:, column]]

    def _own_counts(self, model: nn.Module) -> dict[tuple[str, Hashable | None], float]:
        return {(one.where, one.layer): one.value for one in self._counts_now(model)}

    def _counts_now(self, model: nn.Module) -> list[OwnCount]:
        self._unread = ""
        try:
            return own_counts(model)
        except Exception as error:  # a property of the model, which may not work yet
            self._unread = f"the model's own counters: {type(error).__name__}: {error}"
            return []

    def _rises(self, model: nn.Module) -> Iterator[OwnCount]:
        """What the model counted since the start; of gauges what they are."""
        for one in self._counts_now(model):
            before = self._counts.get((one.where, one.layer), 0.0)
            rose = one.value if one.metric in _GAUGES else one.value - before
            if rose >= 0:  # else it was set back
                yield OwnCount(one.where, one.metric, one.layer, rose)

    def _beside(
        self, snapshot: Snapshot, rises: tuple[OwnCount, ...]
    ) -> Iterator[tuple[OwnCount, float]]:
        """The model's counts beside those that were counted here."""
        for one in rises:
            ours = snapshot.value(one.metric, layer=one.layer)  # type: ignore[arg-type]
            if one.metric not in _GAUGES:
                before = self._counted_at_start(one)
                ours -= before if before == before else 0.0
            if ours == ours:
                yield one, ours
