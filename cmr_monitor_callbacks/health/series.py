"""Which series rules look at, and their values, for all rules at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.config.conditions import COMPARISONS, Comparison
from cmr_monitor_callbacks.health.numbers import Array, Numbers
from cmr_monitor_callbacks.health.rules import AlertRule, literal_layers
from cmr_monitor_callbacks.health.states import Key
from cmr_monitor_callbacks.layers import LayerId, layer_order, matches
from cmr_monitor_callbacks.packed import METRIC_ROW
from cmr_monitor_callbacks.snapshot import By, Over, Table

Places = NDArray[np.intp]
Source = tuple[Table, By]
Mask = NDArray[np.bool_]
NOWHERE: Final = -1
"""Place of a number that is in no table."""


@dataclass(frozen=True)
class _Stretch:
    """Where numbers of a table stand among all that are taken from it.

    Attributes:
        source: the table.
        at: the stretch.
    """

    source: Source
    at: slice


class _Gather:
    """Takes the numbers of all rules out of each table at once."""

    def __init__(self) -> None:
        self._places: dict[Source, list[Places]] = {}
        self._all: dict[Source, Places] = {}

    def add(self, source: Source, places: Places) -> _Stretch:
        """Take these places too; `NOWHERE` is no data."""
        known = self._places.setdefault(source, [])
        start = sum(map(len, known))
        known.append(places)
        return _Stretch(source, slice(start, start + len(places)))

    def close(self) -> None:
        """Nothing is added any more."""
        self._all = {source: np.concatenate(parts) for source, parts in self._places.items()}

    def taken(self, numbers: Numbers) -> dict[Source, Array]:
        """The numbers of a window, by table, in the order in which they were added."""
        found = {}
        for source, places in self._all.items():
            table = numbers.table(*source)
            flat = np.empty(table.size + 1)
            flat[:-1] = table.reshape(-1)
            flat[NOWHERE] = math.nan
            found[source] = flat[places]
        return found


@dataclass(frozen=True)
class _Grid:
    """Series of a rule that are compared with each other, or of which several become one.

    Attributes:
        rule: the rule.
        start: first of its instances; they lie together.
        shape: metrics, layers, ranks before any become one.
        stretch: of all series, flat.
        own: names and ranks of the numbers that are in no table, with their places in the grid.
        ranks: by place on the last axis.
        layers: by place on the middle axis.
    """

    rule: AlertRule
    start: int
    shape: tuple[int, int, int]
    stretch: _Stretch
    own: list[tuple[int, str, int | None, Over]]
    layers: Sequence[LayerId | None]
    ranks: Sequence[int | None]


@dataclass(frozen=True)
class _Companion:
    """A comparison that a rule asks for besides.

    Attributes:
        compare: of values with the limit.
        limit: the other number.
        stretch: of the values, by instance of the rule; None: they are in no table.
        own: name, rank and stretch of numbers that are in no table, by instance.
    """

    compare: Callable[[Any, Any], Any]
    limit: float
    stretch: _Stretch | None
    own: list[tuple[str, int | None, Over]]

    def values(self, numbers: Numbers, taken: Mapping[Source, Array]) -> Array:
        """The numbers that are compared, by instance."""
        if self.stretch is None:
            return np.array([numbers.own_value(*own) for own in self.own], dtype=np.float64)
        return taken[self.stretch.source][self.stretch.at]


class Series:
    """The series that some rules look at, in one order: the instances of the rules.

    Args:
        rules: the rules.
        layers: of the tables, from column 1 on.
        ranks: number of ranks.

    Attributes:
        rules: the rules.
        counts: instances of each rule.
        rule: by instance, the rule's place in ``rules``.
        metric: by instance; canonical name.
        layer: by instance; None: the whole.
        rank: by instance; None: over all ranks.
        found: where a series of several was taken, its layer and rank, by instance.
    """

    def __init__(self, rules: Sequence[AlertRule], layers: Sequence[LayerId], ranks: int) -> None:
        self.rules = tuple(rules)
        self._columns: dict[LayerId | None, int] = {None: 0}
        self._columns.update({layer: 1 + i for i, layer in enumerate(layers)})
        self._ranks = ranks
        self.metric: list[str] = []
        self.layer: list[LayerId | None] = []
        self.rank: list[int | None] = []
        self.counts: list[int] = []
        self.found: dict[int, tuple[LayerId | None, int | None]] = {}
        self._gather = _Gather()
        alone: dict[Source, tuple[list[Places], list[Places]]] = {}
        self._own: list[tuple[int, str, int | None, Over]] = []
        self._grids: list[_Grid] = []
        self._whens: list[tuple[slice, list[list[_Companion]]]] = []
        for rule in self.rules:
            before = len(self.metric)
            if ranks >= rule.min_ranks:
                self._add(rule, alone)
            self.counts.append(len(self.metric) - before)
        self.rule = np.repeat(np.arange(len(self.rules)), self.counts)
        self._plain = [
            (self._gather.add(source, np.concatenate(places)), np.concatenate(at))
            for source, (at, places) in alone.items()
        ]
        self._gather.close()

    def __len__(self) -> int:
        return len(self.metric)

    def key(self, i: int) -> Key:
        """What tells an instance apart, whatever the order."""
        return self.rules[self.rule[i]].name, self.metric[i], self.layer[i], self.rank[i]

    def _add(self, rule: AlertRule, alone: dict[Source, tuple[list[Places], list[Places]]]) -> None:
        layers: list[LayerId | None] = [None]
        if rule.layer is not None:
            known = [layer for layer in self._columns if layer is not None]
            chosen: set[LayerId] = {layer for layer in known if matches(rule.layer, layer)}
            if rule.condition == "absent":  # one that never came is absent too
                texts = set(map(str, known))
                chosen |= {x for x in literal_layers(rule.layer) if str(x) not in texts}
            layers = [*sorted(chosen, key=layer_order)]
        ranks: list[int | None] = [None]
        if rule.rank is not None:
            ranks = [rank for rank in range(self._ranks) if matches(rule.rank, rank)]
        if not layers or not ranks:
            return
        start, source = len(self.metric), self._source(rule)
        places = self._places(rule, layers, ranks)
        own = [
            (i, metric, rank if self._ranks > 1 else None, _over(rule))
            for i, (metric, layer, rank) in enumerate(
                (m, c, r) for m in rule.metrics for c in layers for r in ranks
            )
            if metric not in METRIC_ROW and layer is None
        ]
        by_layer: Sequence[LayerId | None] = layers if rule.reduce_layers == "none" else [None]
        by_rank: Sequence[int | None] = ranks if rule.reduce_ranks == "none" else [None]
        for metric in rule.metrics:
            for layer in by_layer:
                self.metric.extend([metric] * len(by_rank))
                self.layer.extend([layer] * len(by_rank))
                self.rank.extend(by_rank)
        if rule.when:
            mine = slice(start, len(self.metric))
            self._whens.append((mine, self._companions_of(rule, layers, ranks)))
        if (rule.reduce_layers, rule.reduce_ranks) != ("none", "none") or rule.versus.startswith(
            "ranks."
        ):
            shape = len(rule.metrics), len(layers), len(ranks)
            stretch = self._gather.add(source, places)
            self._grids.append(_Grid(rule, start, shape, stretch, own, layers, ranks))
            return
        if (places >= 0).any():  # reading a table of which nothing is asked would cost
            at, wanted = alone.setdefault(source, ([], []))
            at.append(np.arange(start, len(self.metric)))
            wanted.append(places)
        for i, name, rank, over in own:
            self._own.append((start + i, name, rank, over))

    def _source(self, rule: AlertRule) -> Source:
        over: Table = "nonfinite" if rule.condition == "nonfinite" else _over(rule)
        by: By = "layer"
        if rule.rank is not None and self._ranks > 1:
            by = "rank" if rule.layer is None else "cell"
        return over, by

    def _places(
        self, rule: AlertRule, layers: Sequence[LayerId | None], ranks: Sequence[int | None]
    ) -> Places:
        """Places in the rule's table, flat, of metrics × layers × ranks."""
        width = len(self._columns)
        columns = np.array([self._columns.get(layer, NOWHERE) for layer in layers])
        rows = np.array([METRIC_ROW.get(metric, NOWHERE) for metric in rule.metrics])
        by = self._source(rule)[1]
        if by == "layer":
            columns = np.repeat(columns, len(ranks))
            size = width
        else:
            numbers = np.array(ranks, dtype=np.intp)
            size = 1 + self._ranks if by == "rank" else self._ranks * width
            across = 1 + numbers if by == "rank" else numbers * width
            lost = columns < 0
            columns = (columns[:, None] * (by == "cell") + across[None, :]).ravel()
            columns[np.repeat(lost, len(ranks))] = NOWHERE
        places = rows[:, None] * size + columns[None, :]
        places[rows < 0] = NOWHERE
        places[:, columns < 0] = NOWHERE
        flat: Places = places.ravel()
        return flat

    def read(self, numbers: Numbers) -> tuple[Array, tuple[Mask, Mask] | None]:
        """The value of every instance, NaN is no data; and its companions, see `_companions`."""
        taken = self._gather.taken(numbers)
        out = np.full(len(self), math.nan)
        for stretch, at in self._plain:
            out[at] = taken[stretch.source][stretch.at]
        for i, name, rank, over in self._own:
            out[i] = numbers.own_value(name, rank, over)
        if self._grids:
            self.found.clear()
            for grid in self._grids:
                self._put_grid(grid, numbers, taken, out)
        return out, self._companions(numbers, taken)

    def _companions(
        self, numbers: Numbers, taken: Mapping[Source, Array]
    ) -> tuple[Mask, Mask] | None:
        """Where what a rule asks for besides does not hold, and where nobody knows; None: nowhere.

        Unknown is a comparison without data; one that fails settles an ``and``, one that holds an
        ``or``.
        """
        if not self._whens:
            return None
        fails, unknown = np.zeros(len(self), dtype=bool), np.zeros(len(self), dtype=bool)
        for stretch, alternatives in self._whens:
            some_holds: Mask | bool = False
            all_fail: Mask | bool = True
            for parts in alternatives:
                all_hold: Mask | bool = True
                some_fails: Mask | bool = False
                for part in parts:
                    values = part.values(numbers, taken)
                    known = values == values
                    holds = part.compare(values, part.limit) & known
                    all_hold = all_hold & holds
                    some_fails = some_fails | (known & ~holds)
                some_holds = some_holds | all_hold
                all_fail = all_fail & some_fails
            fails[stretch] = all_fail
            unknown[stretch] = ~(some_holds | all_fail)
        return fails, unknown

    def _companions_of(
        self, rule: AlertRule, layers: Sequence[LayerId | None], ranks: Sequence[int | None]
    ) -> list[list[_Companion]]:
        """A rule's other comparisons, with their places in the tables."""
        return [
            [self._companion(part, rule, layers, ranks) for part in parts] for parts in rule.when
        ]

    def _companion(
        self,
        part: Comparison,
        rule: AlertRule,
        layers: Sequence[LayerId | None],
        ranks: Sequence[int | None],
    ) -> _Companion:
        name = part.name
        if name.startswith("whole."):
            name, layers = name[6:], [None] * len(layers)
        compare, many = COMPARISONS[part.condition], len(rule.metrics)
        if name not in METRIC_ROW:
            own = [(name, rank if self._ranks > 1 else None, _over(rule)) for rank in ranks]
            return _Companion(compare, part.limit, None, own * len(layers) * many)
        other = replace(rule, metrics=(name,), condition=">")
        places = np.tile(self._places(other, layers, ranks), many)
        return _Companion(compare, part.limit, self._gather.add(self._source(other), places), [])

    def _put_grid(
        self, grid: _Grid, numbers: Numbers, taken: Mapping[Source, Array], out: Array
    ) -> None:
        flat = taken[grid.stretch.source][grid.stretch.at]
        for i, name, rank, over in grid.own:
            flat[i] = numbers.own_value(name, rank, over)
        values = flat.reshape(grid.shape)
        rule = grid.rule
        if rule.versus.startswith("ranks."):
            how = "median"
            if rule.versus == "ranks.best":
                how = "min" if rule.condition in (">", ">=") else "max"
            values = beside(values, _folded(values, how, 2)[..., None], ratio=rule.as_ratio)
        best = None
        if rule.reduce_ranks != "none":
            best = _place_of(values, rule.reduce_ranks)
            values = _folded(values, rule.reduce_ranks, 2)[..., None]
        layers_of = None
        if rule.reduce_layers != "none":
            layers_of = _place_of(np.moveaxis(values, 1, 2), rule.reduce_layers)
            values = _folded(values, rule.reduce_layers, 1)[:, None, :]
        out[grid.start : grid.start + values.size] = values.ravel()
        self._note_found(grid, values.shape, best, layers_of)

    def _note_found(
        self,
        grid: _Grid,
        shape: tuple[int, ...],
        ranks_of: Places | None,
        layers_of: Places | None,
    ) -> None:
        """Remember which layer and rank a greatest or least is of."""
        if ranks_of is None and layers_of is None:
            return
        for i, (metric, layer_at, rank_at) in enumerate(np.ndindex(*shape)):
            layer = rank = None
            if layers_of is not None:
                layer_at = int(layers_of[metric, rank_at])
                layer = grid.layers[layer_at] if layer_at >= 0 else None
            if ranks_of is not None and layer_at >= 0:
                at = int(ranks_of[metric, layer_at])
                rank = grid.ranks[at] if at >= 0 else None
            self.found[grid.start + i] = layer, rank


def _over(rule: AlertRule) -> Over:
    return "run" if rule.over == "run" else "window"


def beside(values: Array, other: Array, *, ratio: bool) -> Array:
    """Value / other, NaN where the other is not positive; or value - other."""
    if not ratio:
        return values - other
    out = np.full(np.broadcast(values, other).shape, math.nan)
    np.divide(values, other, out=out, where=other > 0)
    return out


def _folded(values: Array, how: str, axis: int) -> Array:
    """Many values to one along an axis; those without data left out."""
    if how == "max":
        return cast(Array, np.fmax.reduce(values, axis=axis))
    if how == "min":
        return cast(Array, np.fmin.reduce(values, axis=axis))
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    if how == "mean":
        total = np.where(known, values, 0.0).sum(axis=axis)
        mean = np.full(total.shape, math.nan)
        np.divide(total, count, out=mean, where=count > 0)
        return mean
    # NaN sorts to the end, so the first `count` of each row are the values
    ordered = np.moveaxis(np.sort(values, axis=axis), axis, -1)
    at = (0.5 if how == "median" else 0.95) * np.maximum(count - 1, 0)
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    below = np.take_along_axis(ordered, low[..., None], -1)[..., 0]
    above = np.take_along_axis(ordered, high[..., None], -1)[..., 0]
    return cast(Array, below + (at - low) * (above - below))


def _place_of(values: Array, how: str) -> Places | None:
    """Where on the last axis the greatest or least is; -1 without data; None for another fold."""
    if how not in ("max", "min"):
        return None
    filler = -math.inf if how == "max" else math.inf
    filled = np.where(np.isnan(values), filler, values)
    at = filled.argmax(axis=-1) if how == "max" else filled.argmin(axis=-1)
    at[np.isnan(values).all(axis=-1)] = NOWHERE
    return cast(Places, at)
