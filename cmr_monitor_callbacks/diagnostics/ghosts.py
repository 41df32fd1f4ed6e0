"""Entries that were evicted, and whether their like was stored again: then they were missed.

An eviction is not seen as it happens: that would be work in every store. Entries are looked at
from time to time; what was there and is gone was evicted (or cleared) in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cmr_monitor_callbacks.entries import Array, LayerEntries

MOST: Final = 4096
"""Entries of a layer that are looked at; of a layer with more it is not known what is gone."""
KEPT: Final = 256
"""Ghosts of a layer that are remembered, the newest."""
SAME: Final = 0.9999
"""Cosine at which two states are one, as for duplicates."""


@dataclass
class _Layer:
    there: dict[bytes, Array] = field(default_factory=dict)
    ghosts: deque[Array] = field(default_factory=lambda: deque(maxlen=KEPT))
    gone: int = 0
    missed: int = 0
    looks: int = 0


@dataclass(frozen=True)
class Missed:
    """What became of the entries of one layer that left it.

    Attributes:
        gone: entries that were seen to be gone.
        missed: of those that are remembered, how many were stored again later.
        looks: how often the layer was looked at.
    """

    gone: int
    missed: int
    looks: int


class Ghosts:
    """Remembers entries from one look to the next.

    >>> ghosts = Ghosts()
    >>> for states in ([[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0], [2.0, 0.0]]):
    ...     ghosts.look([LayerEntries(4, "buffer", len(states), states=np.array(states))])
    >>> ghosts.missed()
    {4: Missed(gone=1, missed=1, looks=3)}
    """

    def __init__(self) -> None:
        self._layers: dict[Hashable, _Layer] = {}

    def look(self, entries: Iterable[LayerEntries]) -> None:
        """Compare what is there now with what was there at the last look."""
        for one in entries:
            if one.states is None or one.count != len(one.states):
                continue  # not all was looked at
            layer = self._layers.setdefault(one.layer, _Layer())
            now = _by_key(one)
            if layer.looks:
                new = [state for key, state in now.items() if key not in layer.there]
                self._find_missed(layer, new)
                gone = [state for key, state in layer.there.items() if key not in now]
                layer.gone += len(gone)
                layer.ghosts.extend(gone)
            layer.there = now
            layer.looks += 1

    @staticmethod
    def _find_missed(layer: _Layer, new: list[Array]) -> None:
        """Ghosts that a newcomer is the like of: each is missed once."""
        if not new or not layer.ghosts:
            return
        cosine = _unit(np.stack(layer.ghosts)) @ _unit(np.stack(new)).T
        back = cosine.max(axis=1) >= SAME
        layer.missed += int(back.sum())
        left = [ghost for ghost, is_back in zip(layer.ghosts, back, strict=True) if not is_back]
        layer.ghosts = deque(left, maxlen=KEPT)

    def missed(self) -> dict[Hashable, Missed]:
        """By layer, what is known until now."""
        return {
            name: Missed(layer.gone, layer.missed, layer.looks)
            for name, layer in self._layers.items()
        }


def _by_key(one: LayerEntries) -> dict[bytes, Array]:
    """States by what tells an entry from another: what it is, and when it came."""
    states = one.states if one.states is not None else np.empty((0, 0))
    came = np.zeros(len(states)) if one.stored_at is None else one.stored_at
    return {
        state.tobytes() + when.tobytes(): state for state, when in zip(states, came, strict=True)
    }


def _unit(states: Array) -> Array:
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    unit: Array = states / np.where(norms > 0, norms, 1.0)
    return unit
