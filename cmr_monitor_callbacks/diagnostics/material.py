"""What the diagnostics look at: all that is known of a run at one moment."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.diagnostics.ghosts import Missed
from cmr_monitor_callbacks.diagnostics.hooks import HookConflict, HookInfo, HookMeasurement
from cmr_monitor_callbacks.entries import Declared, LayerEntries, OwnCount
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.history import RunHistory, Series
from cmr_monitor_callbacks.layers import layer_order
from cmr_monitor_callbacks.snapshot import Over, Snapshot

_MOST_POINTS: Final = 10_000
"""Of a series: so that the end of a fit of any length waits about as long."""


@dataclass(frozen=True)
class Balance:
    """Where a layer's entries came from and went to, since the monitor was attached.

    Attributes:
        layer: id of the layer.
        at_start: entries when the monitor was attached; None: not known.
        stored, loaded, evicted, overwritten, merged, cleared: entries since then.
        entries: held now.
    """

    layer: Hashable
    at_start: int | None
    stored: int
    loaded: int
    evicted: int
    overwritten: int
    merged: int
    cleared: int
    entries: int | None

    @property
    def gap(self) -> int | None:
        """Entries that are there and should not be (negative: that should be and are not).

        >>> Balance(4, 0, 10, 0, 3, 0, 0, 0, 7).gap
        0
        """
        if self.at_start is None or self.entries is None:
            return None
        came = self.at_start + self.stored + self.loaded
        return self.entries - came + self.evicted + self.overwritten + self.merged + self.cleared

    def to_dict(self) -> dict[str, Any]:
        """Its numbers and the gap."""
        return {**vars(self), "gap": self.gap}


@dataclass(frozen=True)
class Compared:
    """Losses of the same batches with the memory and without it.

    Attributes:
        with_memory: a loss for each batch.
        without: likewise.
        reason: why there are none; '' where nobody asked for any.
        how: how the memory was switched off.
    """

    with_memory: tuple[float, ...] = ()
    without: tuple[float, ...] = ()
    reason: str = ""
    how: str = ""

    @property
    def helps(self) -> tuple[float, float]:
        """Mean of (loss without - loss with), and its standard error; NaN where not known."""
        gains = np.array(self.without) - np.array(self.with_memory)
        if len(gains) < 2:
            return (float(gains[0]) if len(gains) else math.nan), math.nan
        return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains)))


@dataclass(frozen=True, eq=False)
class Material:
    """All that is known of a run at one moment; what is not known is empty.

    Attributes:
        snapshot: the numbers of this moment.
        history: the windows until now; None: none are kept.
        health: the newest verdict.
        entries: what the layers hold.
        unknown: what could not be looked at, each with the reason.
        hooks: hooks of the model.
        conflicts: hooks that get in each other's way.
        measured: what hooks cost; None: nobody measured it.
        own_counts: by what the model itself counts since the start, and what was counted here.
        balances: moves of entries by layer.
        declared: what the model says of its layers.
        layer_globs: layers that the settings name.
        watched: probes and objects that are listened to.
        compared: losses with and without memory.
        missed: by layer, what became of entries that left it.
        alone: whether this is the only process.
    """

    snapshot: Snapshot
    history: RunHistory | None = None
    health: HealthReport = field(default_factory=HealthReport)
    entries: tuple[LayerEntries, ...] = ()
    unknown: tuple[str, ...] = ()
    hooks: tuple[HookInfo, ...] = ()
    conflicts: tuple[HookConflict, ...] = ()
    measured: HookMeasurement | None = None
    own_counts: tuple[tuple[OwnCount, float], ...] = ()
    balances: tuple[Balance, ...] = ()
    declared: Declared = field(default_factory=Declared)
    layer_globs: tuple[str, ...] = ("*",)
    watched: int = 1
    compared: Compared = field(default_factory=Compared)
    missed: Mapping[Hashable, Missed] = field(default_factory=dict)
    alone: bool = True

    @property
    def steps(self) -> int:
        """Steps of training until now."""
        return self.snapshot.step + 1

    @property
    def layers(self) -> list[Hashable | None]:
        """Layers that there are numbers of; where there are none, the whole alone."""
        ids: list[Hashable | None] = sorted(self.snapshot.layer_ids, key=layer_order)  # type: ignore[arg-type]
        return ids or [None]

    def value(self, name: str, layer: Hashable | None = None, over: Over = "run") -> float:
        """A number; NaN is no data."""
        return self.snapshot.value(name, layer=layer, over=over)  # type: ignore[arg-type]

    def count(self, name: str, layer: Hashable | None = None) -> float:
        """A counter of the run; 0 without data."""
        value = self.value(name, layer)
        return 0.0 if math.isnan(value) else value

    def by_layer(self, name: str) -> Mapping[Hashable, float]:
        """A number of the run by layer, where there is data."""
        return self.snapshot.layers(name)  # type: ignore[return-value]

    def series(self, name: str, layer: Hashable | None = None) -> Series | None:
        """A number by window, in a very long run by 10 or 100 of them; None: none are kept."""
        if self.history is None:
            return None
        return self.history.series(name, layer, max_points=_MOST_POINTS)  # type: ignore[arg-type]
