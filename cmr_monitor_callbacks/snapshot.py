"""The snapshot: what is known at the end of a window, frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM, Kind, canonical, is_custom
from cmr_monitor_callbacks.custom import Tracked
from cmr_monitor_callbacks.layers import LayerId, layer_id, layer_order
from cmr_monitor_callbacks.nonfinite import nonfinite_counts
from cmr_monitor_callbacks.packed import METRIC_ROW, Packed, Reader, read
from cmr_monitor_callbacks.ranks import FORWARD_METRIC, put_greatest, put_rates

Over = Literal["run", "window"]
Table = Literal["run", "window", "nonfinite"]
By = Literal["layer", "rank", "cell"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All numbers of one stage at the end of one window.

    Attributes:
        stage: ``train``, ``val``, ``test`` or ``predict``.
        step: the last step of the window, on Lightning's own x-axis (the first step is 0); -1
            before the first window.
        time: seconds since the Unix epoch.
        world_size: processes whose numbers are in it.
        layer_ids: layers by column of the tables, from column 1 on.
        statistics: packed statistics since the start of the stage.
        counters: shape ``(counters, 1 + layers)``, counters since the start of the stage.
        window: shape ``(metrics, 1 + layers)``, every metric of the last window; NaN is no data.
        own: the monitor's own numbers and health, by name.
        sources: where each kind of number comes from, by component.
        recent_times: the last raw durations of this process in seconds, by name.
        by_rank: the window's packed statistics, column ``1 + r`` that of rank ``r``; None where
            there is one process.
        run_by_rank: the same since the start of the stage; windows of one process are not in it,
            and it starts anew where the number of several ranks changes.
        window_statistics: packed statistics of the window.
        cells: shape ``(ranks, 2 * statistics, 1 + layers)``: values, then samples of the window, of
            each rank; None where there is one process, or where only the ranks' wholes are known.
        own_window: of the monitor's own counters what the window added, by name.
        own_by_rank: the monitor's own numbers that each rank has, by name, shape ``(ranks,)``.
        custom: what ``track_metric`` was given in the window, by its name.
        custom_run: the same since the start.

    >>> Snapshot.empty("train").value("capture_efficiency")
    nan
    """

    stage: str
    step: int
    time: float
    world_size: int
    layer_ids: tuple[LayerId, ...]
    statistics: Packed = field(repr=False)
    counters: NDArray[np.float64] = field(repr=False)
    window: NDArray[np.float64] = field(repr=False)
    own: Mapping[str, float] = field(default_factory=dict, repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)
    recent_times: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    by_rank: Packed | None = field(default=None, repr=False)
    run_by_rank: Packed | None = field(default=None, repr=False)
    window_statistics: Packed = field(default_factory=lambda: Packed.empty(1), repr=False)
    cells: NDArray[np.float64] | None = field(default=None, repr=False)
    own_window: Mapping[str, float] = field(default_factory=dict, repr=False)
    own_by_rank: Mapping[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)
    custom: Mapping[str, Tracked] = field(default_factory=dict, repr=False)
    custom_run: Mapping[str, Tracked] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, stage: str) -> Snapshot:
        """A snapshot before any window: no data at all."""
        packed = Packed.empty(1)
        reader = Reader()
        counters, window = reader.counters(packed), reader.read(packed, packed)
        return cls(stage, -1, math.nan, 1, (), packed, counters, window)

    @cached_property
    def run(self) -> NDArray[np.float64]:
        """Every metric since the start of the stage, shape as ``window``; read when first asked."""
        table = read(self.statistics, self.statistics)
        if self.run_by_rank is not None:
            if self.by_rank is not None:
                put_rates(table, self.run_by_rank)
            put_greatest(table, self.run_by_rank, FORWARD_METRIC)
        return table

    @cached_property
    def _rank_tables(self) -> dict[str, NDArray[np.float64]]:
        """Every metric of each rank, shape ``(metrics, 1 + ranks)``; read when first asked."""
        if self.by_rank is None or self.run_by_rank is None:
            return {}
        return {
            "window": read(self.by_rank, self.run_by_rank),
            "run": read(self.run_by_rank, self.run_by_rank),
        }

    def value(
        self,
        name: str,
        layer: LayerId | None = None,
        rank: int | None = None,
        over: Over = "run",
    ) -> float:
        """One number.

        Args:
            name: any name of a metric; what ``track_metric`` was given by its name, or with
                ``custom/`` before it.
            layer: id of a layer; None: the model as a whole.
            rank: a rank; None: over all ranks. A rank's layers are known of the last window alone.
            over: since the start of the stage (``run``) or in the last window.

        Returns:
            the number, NaN where there is no data.

        Raises:
            KeyError: no metric has that name; the message names the nearest.
            ValueError: ``over`` is neither ``run`` nor ``window``, or there is no such rank.
        """
        name = self._canonical(name)
        _check_over(over)
        if rank is not None and not 0 <= rank < self.world_size:
            raise ValueError(f"rank must be in 0..{self.world_size - 1}, got {rank}")
        row = METRIC_ROW.get(name)
        if row is None:
            alone = rank is None or self.world_size == 1
            if layer is not None:
                return math.nan
            return self.own_value(name, None if alone else rank, over)
        column = self._column(layer)
        if column is None:
            return math.nan
        if rank is not None and self.world_size > 1:
            if layer is None:
                return float(self.table(over, "rank")[row, 1 + rank])
            cell = rank * (1 + len(self.layer_ids)) + column
            return float(self.table(over, "cell")[row, cell])
        return float((self.run if over == "run" else self.window)[row, column])

    def own_value(self, name: str, rank: int | None, over: Over) -> float:
        """A number of the monitor's own or of the user's, of the whole or a rank; NaN: no data."""
        if name.startswith(CUSTOM):
            tracked = self.custom_run if over == "run" else self.custom
            found = tracked.get(name.removeprefix(CUSTOM)) if rank is None else None
            return math.nan if found is None else found.mean
        if rank is None and over == "window" and name in self.own_window:
            return self.own_window[name]
        if rank is None:
            return self.own.get(name, math.nan)
        by_rank = self.own_by_rank.get(name)
        return math.nan if by_rank is None else float(by_rank[rank])

    def table(self, over: Table, by: By) -> NDArray[np.float64]:
        """All metrics, rows as in ``METRIC_ROW``; NaN is no data.

        Args:
            over: ``run``, ``window``, or ``nonfinite``: how many values of the window were not
                taken because they were not finite.
            by: ``layer``: column 0 is the whole, then the layers; ``rank``: column 0 is empty, then
                the ranks; ``cell``: for each rank its whole (empty) and its layers, of the last
                window alone.
        """
        if over == "nonfinite":
            return self._nonfinite(by)
        if by == "layer":
            return self.run if over == "run" else self.window
        if by == "rank":
            known = self._rank_tables.get(over)
            return self._nothing(1 + self.world_size) if known is None else known
        if over == "run":
            return self._nothing(self.world_size * (1 + len(self.layer_ids)))
        return self._cell_table

    def _nothing(self, width: int) -> NDArray[np.float64]:
        return np.full((len(METRIC_ROW), width), math.nan)

    def _nonfinite(self, by: By) -> NDArray[np.float64]:
        packed = {"layer": self.window_statistics, "rank": self.by_rank, "cell": self._cells}[by]
        table = self.table("window", by)
        if packed is None:
            return np.where(np.isnan(table), math.nan, 0.0)
        if by != "cell":
            packed.widen(table.shape[1])
            return nonfinite_counts(packed, table)
        filled = np.concatenate((self._nothing(1), table), axis=1)
        return nonfinite_counts(packed, filled)[:, 1:]

    @cached_property
    def _cells(self) -> Packed | None:
        """Each rank's columns, one rank after the other, behind an empty column."""
        width = 1 + len(self.layer_ids)
        if self.cells is None or self.cells.shape[2] != width:
            return None
        ranks, rows = len(self.cells), len(self.statistics.values)
        packed = Packed.empty(1 + ranks * width)
        flat = self.cells.transpose(1, 0, 2).reshape(2 * rows, ranks * width)
        packed.values[:, 1:], packed.samples[:, 1:] = flat[:rows], flat[rows:]
        return packed

    @cached_property
    def _cell_table(self) -> NDArray[np.float64]:
        width = 1 + len(self.layer_ids)
        packed = self._cells
        if packed is None:
            return self._nothing(self.world_size * width)
        run = Packed.empty(packed.width)  # what was ever seen of a layer is a number in every rank
        run.values[:, 1:] = np.tile(self.statistics.values[:, :width], self.world_size)
        run.samples[:, 1:] = np.tile(self.statistics.samples[:, :width], self.world_size)
        table = read(packed, run)[:, 1:]
        table[:, ::width] = math.nan
        return table

    def row(self, name: str, over: Over = "run") -> NDArray[np.float64]:
        """A number for the whole (column 0) and for each layer; shape ``(1 + layers,)``."""
        _check_over(over)
        table = self.run if over == "run" else self.window
        out: NDArray[np.float64] = table[METRIC_ROW[canonical(name)]]
        return out

    def layers(self, name: str, over: Over = "run") -> dict[LayerId, float]:
        """A number by layer, where there is data; integers first, each kind in order."""
        values = {i: self.value(name, layer=i, over=over) for i in self.layer_ids}
        ordered = sorted(values, key=layer_order)
        return {i: values[i] for i in ordered if not math.isnan(values[i])}

    def ranks(self, name: str, over: Over = "window") -> dict[int, float]:
        """A number by rank, where there is data.

        >>> Snapshot.empty("train").ranks("step_time")
        {}
        """
        values = {r: self.value(name, rank=r, over=over) for r in range(self.world_size)}
        return {r: value for r, value in values.items() if not math.isnan(value)}

    def greatest(self, name: str, over: Over = "window") -> tuple[float, int | None]:
        """The greatest of the ranks' numbers, and the rank that has it.

        >>> Snapshot.empty("train").greatest("step_time")
        (nan, None)
        """
        values = self.ranks(name, over)
        rank = max(values, key=values.__getitem__, default=None)
        return (math.nan if rank is None else values[rank]), rank

    def skew(self, name: str, over: Over = "window") -> float:
        """The greatest of the ranks' numbers / their median; NaN without data.

        >>> Snapshot.empty("train").skew("step_time")
        nan
        """
        values = list(self.ranks(name, over).values())
        median = float(np.median(values)) if values else math.nan
        return max(values) / median if median > 0 else math.nan

    def source(self, name: str) -> str:
        """Where a number comes from, such as ``explicit:blocks.4.probe``; empty without data."""
        name = self._canonical(name)
        if is_custom(name):
            return "track_metric"
        info = BY_NAME[name]
        found = self.sources.get(info.name, self.sources.get(info.numerator))
        return self.sources.get(info.component, "") if found is None else found

    def unit(self, name: str) -> str:
        """The unit of a number."""
        return BY_NAME[self._canonical(name)].unit

    def _canonical(self, name: str) -> str:
        return CUSTOM + name if name in self.custom_run else canonical(name)

    def to_dict(self, over: Over = "run") -> dict[str, Any]:
        """The specification's dictionaries, with its keys; numbers without data are left out.

        Args:
            over: which stretch counters and averages are of; the result's ``over`` says it.

        Returns:
            ``metrics``, ``buffer_stats`` and ``retrieval_stats``, beside ``stage``, ``step``,
            ``time`` and ``over``; ``custom``: of each number that ``track_metric`` was given its
            mean, min, max, last, count and the time of the last. Counts are ints, layers are their
            ids.
        """
        return {
            "stage": self.stage,
            "step": self.step,
            "time": self.time,
            "over": over,
            "metrics": {
                **{name: times.tolist() for name, times in self.recent_times.items()},
                **self._named(_METRICS_KEYS, over),
            },
            "buffer_stats": self._named(_BUFFER_KEYS, over),
            "retrieval_stats": self._named(_RETRIEVAL_KEYS, over),
            "custom": {
                name: tracked.to_dict()
                for name, tracked in (self.custom_run if over == "run" else self.custom).items()
            },
        }

    def _column(self, layer: LayerId | None) -> int | None:
        if layer is None:
            return 0
        try:
            return self.layer_ids.index(layer_id(layer)) + 1
        except ValueError:
            return None

    def _named(self, keys: tuple[str, ...], over: Over) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key in keys:
            whole = BY_NAME[canonical(key)]
            if key.endswith("_per_layer"):
                layers = self.layers(key, over)
                if layers:
                    out[key] = {i: _shown(whole.kind, whole.unit, v) for i, v in layers.items()}
                continue
            value = self.value(key, over=over)
            if not math.isnan(value):
                out[key] = _shown(whole.kind, whole.unit, value)
        return out


_METRICS_KEYS = (
    "total_forward_time",
    "avg_capture_time",
    "avg_reconstruction_time",
    "total_captures",
    "total_reconstructions",
    "states_captured_per_layer",
    "states_stored_per_layer",
    "reconstructions_per_layer",
    "capture_efficiency",
    "storage_efficiency",
    "reconstruction_quality",
    "memory_utilization",
    "cache_hit_rate",
)
_BUFFER_KEYS = (
    "total_entries",
    "entries_per_layer",
    "memory_size_mb",
    "utilization_rate",
    "eviction_count",
    "eviction_rate",
)
_RETRIEVAL_KEYS = (
    "total_retrievals",
    "avg_retrieval_time",
    "cache_hits",
    "cache_hit_rate",
    "retrieval_quality",
)


def _check_over(over: str) -> None:
    if over not in ("run", "window"):
        raise ValueError(f"over must be 'run' or 'window', got {over!r}")


def _shown(kind: Kind, unit: str, value: float) -> float | int:
    counts = kind in (Kind.COUNTER, Kind.GAUGE) and unit not in ("s", "1", "MiB")
    return int(value) if counts else value
