"""Values that were not finite in windows in which rules were not judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.health import AlertRule, Numbers
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.packed import METRIC_ROW
from cmr_monitor_callbacks.snapshot import By, Over, Table

Array = NDArray[np.float64]
Place = tuple[str, LayerId | None, int | None]
_NAMES: Final = {row: name for name, row in METRIC_ROW.items()}


class Missed:
    """How many values of each series were not finite since rules were judged last.

    ``health_check_interval`` has rules look at one window of several; a NaN in the others would be
    seen by nobody.

    >>> from cmr_monitor_callbacks.health import GivenNumbers
    >>> missed, rule = Missed(), AlertRule("bad", ("avg_latency",), "nonfinite", ())
    >>> missed.note(GivenNumbers({}, nonfinite={("avg_latency", None, None): 2.0}), [rule])
    >>> later = missed.added_to(GivenNumbers({("avg_latency", None, None): 0.1}))
    >>> float(later.table("nonfinite", "layer")[METRIC_ROW["avg_latency"], 0])
    2.0
    """

    def __init__(self) -> None:
        self._counts: dict[By, dict[Place, float]] = {}

    def note(self, numbers: Numbers, rules: Iterable[AlertRule]) -> None:
        """Count those of a window that is not judged, where a rule asks for them."""
        ranks = numbers.world_size
        for by in {_by(rule, ranks) for rule in rules if rule.condition == "nonfinite"}:
            table = numbers.table("nonfinite", by)
            counts = self._counts.setdefault(by, {})
            for row, column in np.argwhere(table > 0).tolist():
                place = _place(numbers, by, row, column)
                counts[place] = counts.get(place, 0.0) + float(table[row, column])

    def added_to(self, numbers: Numbers) -> Numbers:
        """The numbers with what was counted; nothing is counted after that."""
        counts, self._counts = self._counts, {}
        return _Added(numbers, counts) if any(counts.values()) else numbers

    def state(self) -> list[list[Any]]:
        """Plain data, for a checkpoint."""
        return [
            [by, *place, count]
            for by, counts in self._counts.items()
            for place, count in counts.items()
        ]

    def load(self, state: Sequence[Sequence[Any]]) -> None:
        """The inverse of `state`."""
        self._counts = {}
        for by, name, layer, rank, count in state:
            if by in get_args(By) and name in METRIC_ROW:
                self._counts.setdefault(by, {})[name, layer, rank] = count


def _by(rule: AlertRule, ranks: int) -> By:
    if rule.rank is None or ranks == 1:
        return "layer"
    return "rank" if rule.layer is None else "cell"


def _place(numbers: Numbers, by: By, row: int, column: int) -> Place:
    layers: tuple[LayerId | None, ...] = (None, *numbers.layer_ids)
    if by == "layer":
        return _NAMES[row], layers[column], None
    if by == "rank":
        return _NAMES[row], None, column - 1
    return _NAMES[row], layers[column % len(layers)], column // len(layers)


class _Added:
    """Numbers of a window, with what was counted before it."""

    def __init__(self, numbers: Numbers, counts: dict[By, dict[Place, float]]) -> None:
        self._numbers, self._counts = numbers, counts
        self.layer_ids, self.world_size = numbers.layer_ids, numbers.world_size

    def table(self, over: Table, by: By) -> Array:
        """See `Numbers.table`."""
        table = self._numbers.table(over, by)
        counts = self._counts.get(by) if over == "nonfinite" else None
        if not counts:
            return table
        table = table.copy()
        for (name, layer, rank), count in counts.items():
            column = self._column(by, layer, rank)
            if column is not None:
                at = METRIC_ROW[name], column
                table[at] = count + (0.0 if np.isnan(table[at]) else table[at])
        return table

    def _column(self, by: By, layer: LayerId | None, rank: int | None) -> int | None:
        layers: tuple[LayerId | None, ...] = (None, *self.layer_ids)
        if layer not in layers or (rank or 0) >= self.world_size:
            return None
        column = layers.index(layer)
        if by == "layer":
            return column
        return 1 + (rank or 0) if by == "rank" else (rank or 0) * len(layers) + column

    def own_value(self, name: str, rank: int | None, over: Over) -> float:
        """See `Numbers.own_value`."""
        return self._numbers.own_value(name, rank, over)
