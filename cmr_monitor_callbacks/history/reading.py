"""The reading side: `RunHistory`, over a finished run or one that goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM, canonical, is_custom, known_names
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.history.choosing import choose
from cmr_monitor_callbacks.history.columns import Array, SeriesKey, layer_from
from cmr_monitor_callbacks.history.happened import Happened
from cmr_monitor_callbacks.history.ranges import Range
from cmr_monitor_callbacks.history.schema import HistoryError
from cmr_monitor_callbacks.history.series import (
    Moment,
    Series,
    label_of,
    put_together,
    statistics_of,
)
from cmr_monitor_callbacks.history.stretches import LAST, Stretch
from cmr_monitor_callbacks.layers import LayerId, layer_id, layer_order

__all__ = ["Range", "RunHistory"]
T = TypeVar("T")


class RunHistory(Happened):
    """What a run's store holds.

    Sessions of one run (it was resumed) make one line: where they overlap, the later one counts.

    Args:
        path: of the store, the folder that it lies in, or one above it (its newest run); or a
            store that is open.
        session: number of the only session that is read; None: all of them, as one run.

    Raises:
        HistoryError: there is none, or it cannot be read; the message says what to do.

    >>> from cmr_monitor_callbacks.history import HistoryStore, RunInfo
    >>> from cmr_monitor_callbacks.config.history import HistoryConfig
    >>> store = HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0)
    >>> RunHistory(store).series("states_stored").value
    array([], dtype=float64)
    """

    # -- what there is ------------------------------------------------------------------------

    def list_series(self, stage: str | None = None) -> list[SeriesKey]:
        """Every series that ever had data, by component and layer."""
        keys = [key for key in self._ids() if stage is None or key.stage == stage]
        return sorted(keys, key=_order)

    def layers(self, stage: str = "train") -> list[LayerId]:
        """Layers that ever had data."""
        found = {key.layer for key in self._ids() if key.stage == stage}
        return sorted((layer for layer in found if layer is not None), key=layer_order)

    def ranks(self) -> list[int]:
        """Ranks whose own numbers are kept."""
        return sorted({key.rank for key in self._ids() if key.rank is not None})

    def _ids(self) -> dict[SeriesKey, int]:
        rows = self._rows("SELECT id, stage, name, layer, rank FROM series")
        return {SeriesKey(r[1], r[2], layer_from(r[3]), r[4]): r[0] for r in rows}

    # -- numbers ------------------------------------------------------------------------------

    def series(
        self,
        name: str,
        layer: LayerId | None = None,
        rank: int | None = None,
        time_range: Range = None,
        *,
        stage: str = "train",
        max_points: int | None = None,
    ) -> Series:
        """One number over time: counters over the run, all else over each window.

        Args:
            name: any name of a metric.
            layer: id of a layer; None: the model as a whole.
            rank: a rank; None: over all ranks.
            time_range: such as ``"1h"``: before the newest window; or two times, seconds since the
                Unix epoch; None: all.
            stage: ``train``, ``val``, ``test`` or ``predict``.
            max_points: at most about so many points: summaries of more windows are taken for it.

        Returns:
            the points, exact wherever single windows are kept and ``max_points`` allows; of no
            points where there is no data.

        Raises:
            KeyError: no metric has that name; the message names the nearest.
            HistoryError: the store cannot be read.
        """
        key = SeriesKey(
            stage, self._canonical(name), None if layer is None else layer_id(layer), rank
        )
        return self.many([key], time_range, max_points=max_points)[key]

    def _canonical(self, name: str) -> str:
        """What `track_metric` was given may go by its bare name, where the run has it."""
        own = CUSTOM + name
        may_be = is_custom(own) and name not in known_names()
        if may_be and any(key.name == own for key in self._ids()):
            return own
        return canonical(name)

    def many(
        self,
        keys: Iterable[SeriesKey],
        time_range: Range = None,
        *,
        max_points: int | None = None,
    ) -> dict[SeriesKey, Series]:
        """Several series as of one moment; see `series`."""
        wanted = list(keys)
        return self._of_each(wanted, lambda series: series, time_range, max_points)

    def _of_each(
        self,
        keys: Sequence[SeriesKey],
        made: Callable[[Series], T],
        time_range: Range,
        max_points: int | None = None,
    ) -> dict[SeriesKey, T]:
        """What is made of each series, as of one moment; only one is in memory at a time."""

        def read() -> dict[SeriesKey, T]:
            stages = dict.fromkeys(key.stage for key in keys)
            bounds = {stage: self.bounds(time_range, stage) for stage in stages}
            with self.decoding():
                ids = self._ids()
                chosen = {
                    stage: self._stretches(stage, bounds[stage], max_points) for stage in stages
                }
                return {key: made(one(key, ids.get(key), chosen[key.stage])) for key in keys}

        def one(key: SeriesKey, number: int | None, parts: Sequence[Stretch]) -> Series:
            found = [] if number is None else [part.read([number])[number] for part in parts]
            return put_together(key, found)

        return self.consistent(read)

    def _stretches(
        self,
        stage: str,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        max_points: int | None = None,
    ) -> list[Stretch]:
        return choose(self._rows, stage, self._session, bounds, max_points)

    def windows(self, stage: str = "train") -> int:
        """Number of windows whose numbers are kept, as they are or in a summary."""
        packed = self._rows(
            "SELECT count(DISTINCT first_window) FROM blocks WHERE stage = ?", (stage,)
        )[0][0]
        (plain,) = self._rows("SELECT count(*) FROM windows WHERE stage = ?", (stage,))[0]
        return int(packed * BLOCK + plain)

    def at(self, step: int, stage: str = "train") -> Moment:
        """All numbers as of a step: of the newest window that ended at or before it.

        Of an old one, which is kept in a summary alone, the newest value of each number in it.

        Raises:
            HistoryError: no window had ended by then.
        """

        def read() -> Moment:
            keys = [key for key in self._ids() if key.stage == stage]
            for stretch in reversed(self._stretches(stage)):
                found = stretch.newest(step)
                if found is not None:
                    return self._moment(stretch, found, keys)
            raise HistoryError(f"no window of {stage} had ended by step {step}")

        with self.decoding():
            return self.consistent(read)

    def _moment(self, stretch: Stretch, at: int, keys: Sequence[SeriesKey]) -> Moment:
        ids = self._ids()
        stretch.keep = slice(at, at + 1)
        found = stretch.read([ids[key] for key in keys])
        names = {ids[key]: key for key in keys}
        values = {
            names[number]: float(columns[LAST][0])
            for number, columns in found.items()
            if not math.isnan(columns[LAST][0])
        }
        return Moment(int(stretch.step[at]), float(stretch.time[at]), values)

    def frame(
        self, time_range: Range = None, *, stage: str = "train", max_points: int | None = None
    ) -> Any:
        """All numbers as a ``pandas.DataFrame``: a row for each window, a column for each series.

        Returns:
            the frame, with the steps as its index and ``time`` as its first column.

        Raises:
            HistoryError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise HistoryError("frame() needs pandas: pip install pandas") from None
        step, time, columns = self.table(time_range, stage=stage, max_points=max_points)
        index = pandas.Index(step, name="step")
        frame = {"time": pandas.to_datetime(time, unit="s", utc=True)}
        frame.update({label_of(key): values for key, values in columns.items()})
        return pandas.DataFrame(frame, index=index)

    def table(
        self, time_range: Range = None, *, stage: str = "train", max_points: int | None = None
    ) -> tuple[NDArray[np.int64], Array, dict[SeriesKey, Array]]:
        """Steps, times and the values of every series at them; NaN is no data."""
        ends: list[tuple[NDArray[np.int64], Array]] = []

        def value(series: Series) -> Array:
            if len(series) and not ends:  # the same for all that have data
                ends.append((series.step, series.time))
            return series.value

        keys = self.list_series(stage)
        found = self._of_each(keys, value, time_range, max_points)
        step, time = ends[0] if ends else (np.zeros(0, dtype=np.int64), np.zeros(0))
        return step, time, {key: values for key, values in found.items() if len(values)}

    def describe(
        self, time_range: Range = None, *, stage: str = "train"
    ) -> dict[SeriesKey, dict[str, float]]:
        """Count, mean, std, min, max and quantiles of each series' windows.

        Of windows that are kept in a summary alone, the mean stands for each.
        """

        def described(series: Series) -> dict[str, float]:
            return statistics_of(series) if len(series) else {}

        found = self._of_each(self.list_series(stage), described, time_range)
        return {key: statistics for key, statistics in found.items() if statistics}


def _order(key: SeriesKey) -> tuple[Any, ...]:
    names = list(BY_NAME)
    name = names.index(key.name) if key.name in BY_NAME else len(names)
    layer = (-1, 0, "") if key.layer is None else layer_order(key.layer)
    return key.stage, name, layer, -1 if key.rank is None else key.rank
