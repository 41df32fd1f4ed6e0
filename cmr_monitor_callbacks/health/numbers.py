"""What the engine asks of numbers: a `Snapshot` gives it, and so does a plain mapping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import canonical
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.packed import METRIC_ROW
from cmr_monitor_callbacks.snapshot import By, Over, Table

Array = NDArray[np.float64]


class Numbers(Protocol):
    """Numbers of one window.

    Attributes:
        layer_ids: layers by column of the tables, from column 1 on.
        world_size: number of ranks.
    """

    @property
    def layer_ids(self) -> tuple[LayerId, ...]:
        """Layers by column of the tables, from column 1 on."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    def table(self, over: Table, by: By) -> Array:
        """All metrics, rows as in ``METRIC_ROW``; NaN is no data.

        Args:
            over: the run, the window, or how many values of the window were not finite.
            by: ``layer``: column 0 is the whole; ``rank``: column 0 is empty, then the ranks;
                ``cell``: for each rank its whole and its layers.
        """
        ...

    def own_value(self, name: str, rank: int | None, over: Over) -> float:
        """A metric that is in no table; NaN is no data."""
        ...


class GivenNumbers:
    """Numbers from a mapping, for tests of rules.

    Args:
        values: by metric, layer (as an id or as text; None: the whole) and rank (None: over all).
        layers: all layers; those in ``values`` by default.
        ranks: number of ranks.
        nonfinite: how many values of a series were not finite, keyed alike.

    Raises:
        KeyError: no metric has that name.

    >>> numbers = GivenNumbers({("storage_efficiency", 4, None): 0.8})
    >>> float(numbers.table("window", "layer")[METRIC_ROW["storage_efficiency"], 1])
    0.8
    """

    def __init__(
        self,
        values: Mapping[tuple[str, LayerId | None, int | None], float],
        layers: Sequence[LayerId] | None = None,
        ranks: int = 1,
        nonfinite: Mapping[tuple[str, LayerId | None, int | None], float] | None = None,
    ) -> None:
        named = [layer for _, layer, _ in (*values, *(nonfinite or ())) if layer is not None]
        self._layers = tuple(dict.fromkeys(named if layers is None else layers))
        self._ranks = ranks
        self._tables: dict[str, dict[str, Array]] = {}
        self._own: dict[tuple[str, int | None], float] = {}
        counts = {"nonfinite": dict(nonfinite or {})}
        for over, given in {"window": values, **counts}.items():
            self._tables[over] = self._filled(given, own=over == "window")

    def _filled(
        self, given: Mapping[tuple[str, LayerId | None, int | None], float], *, own: bool
    ) -> dict[str, Array]:
        width = 1 + len(self._layers)
        tables: dict[str, Array] = {
            by: np.full((len(METRIC_ROW), columns), math.nan)
            for by, columns in (
                ("layer", width),
                ("rank", 1 + self._ranks),
                ("cell", self._ranks * width),
            )
        }
        for (name, layer, rank), value in given.items():
            row = METRIC_ROW.get(canonical(name))
            if row is None:
                if own:
                    self._own[canonical(name), rank] = value
                continue
            column = 0 if layer is None else 1 + self._layers.index(layer)
            if rank is None:
                tables["layer"][row, column] = value
            elif layer is None:
                tables["rank"][row, 1 + rank] = value
            else:
                tables["cell"][row, rank * width + column] = value
        return tables

    @property
    def layer_ids(self) -> tuple[LayerId, ...]:
        """Layers by column of the tables, from column 1 on."""
        return self._layers

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._ranks

    def table(self, over: Table, by: By) -> Array:
        """See `Numbers.table`; run and window are the same here."""
        values = self._tables["window"][by]
        if over != "nonfinite":
            return values
        counts = self._tables["nonfinite"][by]
        return np.where(np.isnan(counts) & ~np.isnan(values), 0.0, counts)

    def own_value(self, name: str, rank: int | None, over: Over) -> float:
        """See `Numbers.own_value`."""
        return self._own.get((name, rank), math.nan)
