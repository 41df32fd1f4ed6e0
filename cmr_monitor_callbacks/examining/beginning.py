"""How it was when the monitor was attached: what came since is a difference to it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator

from torch import nn

from cmr_monitor_callbacks.diagnostics import Balance
from cmr_monitor_callbacks.entries import LayerEntries, OwnCount
from cmr_monitor_callbacks.probes.declared import own_counts
from cmr_monitor_callbacks.recording.ledger import MOVES, Ledger
from cmr_monitor_callbacks.snapshot import Snapshot

_GAUGES = ("total_entries",)
Key = tuple[str, Hashable | None]


class EntryBooks:
    """Where the entries of each layer came from and went to.

    Args:
        ledger: what was counted.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._held: dict[Hashable, int] = {}
        self._moves: dict[Hashable, list[int]] = {}

    def begin(self, entries: Iterable[LayerEntries]) -> None:
        """Remember what is held now, and what was counted until now."""
        self._ledger.keeps_books = True
        self._ledger.fold()
        self._held = _held(entries)
        layers = (*self._ledger.layout.layers, *self._held)
        self._moves = {layer: self._moves_of(layer) for layer in layers}

    def balances(self, entries: Iterable[LayerEntries]) -> tuple[Balance, ...]:
        """By layer, what moved since; none where a device counts, which is known late."""
        self._ledger.fold()
        if self._ledger.cells.in_use:
            return ()
        held = _held(entries)
        return tuple(self._balance(layer, held) for layer in self._ledger.layout.layers)

    def _balance(self, layer: Hashable, held: dict[Hashable, int]) -> Balance:
        before = self._moves.get(layer, [0] * len(MOVES))
        moved = [now - then for now, then in zip(self._moves_of(layer), before, strict=True)]
        known = layer in held or layer in self._held
        start = self._held.get(layer, 0) if known else None
        stored, loaded, evicted, overwritten, merged, cleared = moved
        now_held = held.get(layer, 0) if known else None
        return Balance(
            layer, start, stored, loaded, evicted, overwritten, merged, cleared, now_held
        )

    def _moves_of(self, layer: Hashable) -> list[int]:
        ledger = self._ledger
        known = layer in ledger.layout.layers
        column = ledger.layout.column(layer) if known else ledger.moves.shape[1]
        if column >= ledger.moves.shape[1]:
            return [0] * len(MOVES)
        return [int(count) for count in ledger.moves[:, column]]


class OwnCounters:
    """What the model counts itself, since the monitor was attached and in training alone.

    Attributes:
        unread: why it could not be read the last time; '' where it could.
    """

    def __init__(self) -> None:
        self.unread = ""
        self._at_start: dict[Key, float] = {}
        self._before_stage: dict[Key, float] | None = None
        self._numbers = Snapshot.empty("train")

    def begin(self, model: nn.Module, numbers: Snapshot) -> None:
        """Remember the model's counters, and what was counted here until now."""
        self._at_start = self._by_key(model)
        self._before_stage = None
        self._numbers = numbers

    def leave_training(self, model: nn.Module) -> None:
        """Another stage begins, whose work the model counts as it counts training's."""
        self._before_stage = self._by_key(model)

    def back_in_training(self, model: nn.Module) -> None:
        """That stage is over."""
        before, self._before_stage = self._before_stage, None
        if before is not None:
            for key, value in self._by_key(model).items():
                self._at_start[key] = self._at_start.get(key, 0.0) + value - before.get(key, 0.0)

    def rises(self, model: nn.Module) -> tuple[OwnCount, ...]:
        """What the model counted since the start; of gauges what they are."""
        found = []
        for one in self._read(model):
            before = self._at_start.get((one.where, one.layer), 0.0)
            rose = one.value if one.metric in _GAUGES else one.value - before
            if rose >= 0:  # else it was set back
                found.append(OwnCount(one.where, one.metric, one.layer, rose))
        return tuple(found)

    def beside(
        self, snapshot: Snapshot, rises: Iterable[OwnCount]
    ) -> Iterator[tuple[OwnCount, float]]:
        """The model's counts beside those that were counted here."""
        for one in rises:
            ours = snapshot.value(one.metric, layer=one.layer)  # type: ignore[arg-type]
            if one.metric not in _GAUGES:
                before = self._numbers.value(one.metric, layer=one.layer)  # type: ignore[arg-type]
                ours -= 0.0 if math.isnan(before) else before
            if not math.isnan(ours):
                yield one, ours

    def _by_key(self, model: nn.Module) -> dict[Key, float]:
        return {(one.where, one.layer): one.value for one in self._read(model)}

    def _read(self, model: nn.Module) -> list[OwnCount]:
        self.unread = ""
        try:
            return own_counts(model)
        except Exception as error:  # a property of the model, which may not work yet
            self.unread = f"the model's own counters: {type(error).__name__}: {error}"
            return []


def _held(entries: Iterable[LayerEntries]) -> dict[Hashable, int]:
    held: dict[Hashable, int] = {}
    for one in entries:
        held[one.layer] = held.get(one.layer, 0) + one.count
    return held
