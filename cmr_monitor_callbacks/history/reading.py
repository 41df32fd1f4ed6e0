"""The reading side: `RunHistory`, over a finished run or one that goes on."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, canonical
from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.config.spans import parse_duration
from cmr_monitor_callbacks.history.columns import Array, SeriesKey, layer_from
from cmr_monitor_callbacks.history.schema import HistoryError, open_to_read, unreadable
from cmr_monitor_callbacks.history.series import (
    Moment,
    Series,
    label_of,
    put_together,
    statistics_of,
)
from cmr_monitor_callbacks.history.store import HistoryStore, is_alive
from cmr_monitor_callbacks.history.stretches import LAST, Block, Stretch, grouped, tier_for
from cmr_monitor_callbacks.layers import LayerId, layer_id, layer_order

Range = str | float | tuple[float, float] | None
"""``"1h"`` or seconds before the last window; or two times, seconds since the Unix epoch."""
T = TypeVar("T")
FILE: Final = "history.sqlite"


class RunHistory:
    """What a run's store holds.

    Sessions of one run (it was resumed) make one line: where they overlap, the later one counts.

    Args:
        path: of the store, or the folder that it lies in; or a store that is open.
        session: number of the only session that is read; None: all of them, as one run.

    Raises:
        HistoryError: there is none, or it cannot be read; the message says what to do.

    >>> from cmr_monitor_callbacks.history import HistoryStore, RunInfo
    >>> from cmr_monitor_callbacks.config.history import HistoryConfig
    >>> store = HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0)
    >>> RunHistory(store).series("states_stored").value
    array([], dtype=float64)
    """

    def __init__(self, path: str | Path | HistoryStore, session: int | None = None) -> None:
        self.path: Path | None = None
        if isinstance(path, HistoryStore):
            self._connection = path.connection
        else:
            self.path = find_store(Path(path))
            self._connection = open_to_read(self.path)
        self._session = session
        if session is not None and session not in {s["session"] for s in self.sessions()}:
            known = ", ".join(str(s["session"]) for s in self.sessions())
            self.close()
            raise HistoryError(f"session must be one of {known}, got {session}")

    def close(self) -> None:
        """Let go of the file."""
        if self.path is not None:
            self._connection.close()

    def __enter__(self) -> RunHistory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise unreadable(self.path or Path(":memory:"), error) from None

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """What SQLite gives but nobody wrote so: a damaged store, whose checks are few."""
        try:
            yield
        except (zlib.error, ValueError, TypeError, IndexError, OverflowError) as error:
            raise unreadable(self.path or Path(":memory:"), error) from None

    def consistent(self, read: Callable[[], T]) -> T:
        """Read several things as of one moment, while the run goes on."""
        if self._connection.in_transaction or self.path is None:
            return read()
        self._rows("BEGIN")
        try:
            return read()
        finally:
            self._rows("COMMIT")

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

    def sessions(self) -> list[dict[str, Any]]:
        """The processes that wrote the store, the oldest first.

        Returns:
            for each its ``session`` number, ``started`` and ``ended`` (seconds since the Unix
            epoch, None where it did not end), ``outcome``, ``state`` (``running``, ``ended`` or
            ``died``), ``host``, ``pid``, ``world_size``, ``git_commit``, ``versions``, ``config``,
            ``sources`` and ``watches``.
        """
        rows = self._rows(
            "SELECT id, started, ended, outcome, host, pid, world_size, git_commit, versions, "
            "config, sources, watches FROM sessions ORDER BY id"
        )
        with self._decoding():
            return [_session(row) for row in rows]

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
        key = SeriesKey(stage, canonical(name), None if layer is None else layer_id(layer), rank)
        return self.consistent(lambda: self._read([key], time_range, max_points)[key])

    def many(
        self,
        keys: Iterable[SeriesKey],
        time_range: Range = None,
        *,
        max_points: int | None = None,
    ) -> dict[SeriesKey, Series]:
        """Several series as of one moment; see `series`."""
        wanted = list(keys)
        return self.consistent(lambda: self._read(wanted, time_range, max_points))

    def _read(
        self, keys: Sequence[SeriesKey], time_range: Range, max_points: int | None
    ) -> dict[SeriesKey, Series]:
        out = {}
        for stage in dict.fromkeys(key.stage for key in keys):
            bounds = self.bounds(time_range, stage)
            with self._decoding():
                wanted = [key for key in keys if key.stage == stage]
                out.update(self._read_stage(stage, wanted, bounds, max_points))
        return {key: out[key] for key in keys}

    def _read_stage(
        self,
        stage: str,
        wanted: Sequence[SeriesKey],
        bounds: tuple[float, float],
        max_points: int | None,
    ) -> dict[SeriesKey, Series]:
        ids = self._ids()
        stretches = self._stretches(stage, bounds, max_points)
        numbers = {ids[key]: key for key in wanted if key in ids}
        found: dict[SeriesKey, list[list[Array]]] = {key: [] for key in wanted}
        for stretch in stretches:
            for number, columns in stretch.read(self._rows, list(numbers)).items():
                found[numbers[number]].append(columns)
        return {key: put_together(key, found[key]) for key in wanted}

    def bounds(self, time_range: Range, stage: str = "train") -> tuple[float, float]:
        """From when until when a range is, in seconds since the Unix epoch."""
        if time_range is None:
            return -math.inf, math.inf
        if isinstance(time_range, tuple):
            return _two_times(time_range)
        seconds = _seconds(time_range)
        newest = self._newest(stage)
        return (math.inf, math.inf) if newest is None else (newest[1] - seconds, math.inf)

    def _newest(self, stage: str) -> tuple[int, float] | None:
        of = "" if self._session is None else f" AND session = {self._session:d}"
        rows = self._rows(
            f"SELECT step, time FROM windows WHERE stage = ?{of} ORDER BY id DESC LIMIT 1", (stage,)
        )
        return rows[0] if rows else None

    def last(self, stage: str = "train") -> tuple[int, float] | None:
        """Step and time of the newest window; None before the first."""
        return self._newest(stage)

    def first(self, stage: str = "train") -> tuple[int, float] | None:
        """Step and time of the oldest window that is kept; of summaries alone their first one's."""
        of = "" if self._session is None else f" AND session = {self._session:d}"
        rows = self._rows(
            "SELECT step, time FROM (SELECT id, step, time FROM windows WHERE stage = ?"
            f"{of} UNION ALL SELECT first_window, first_step, first_time FROM blocks WHERE "
            f"stage = ?{of}) ORDER BY id LIMIT 1",
            (stage, stage),
        )
        return rows[0] if rows else None

    def windows(self, stage: str = "train") -> int:
        """Number of windows whose numbers are kept, as they are or in a summary."""
        packed = self._rows(
            "SELECT count(DISTINCT first_window) FROM blocks WHERE stage = ?", (stage,)
        )[0][0]
        (plain,) = self._rows("SELECT count(*) FROM windows WHERE stage = ?", (stage,))[0]
        return int(packed * BLOCK + plain)

    def _stretches(
        self, stage: str, bounds: tuple[float, float], max_points: int | None
    ) -> list[Stretch]:
        """What to read, the oldest first; resumed sessions hide what they did again."""
        of = "" if self._session is None else f" AND session = {self._session:d}"
        blocks: dict[int, list[tuple[Any, ...]]] = {}
        for row in self._rows(
            "SELECT first_window, tier, id, session, rows, first_step, steps, times FROM blocks "
            f"WHERE stage = ?{of} AND last_time >= ? AND first_time <= ? ORDER BY first_window",
            (stage, *bounds),
        ):
            blocks.setdefault(row[0], []).append(row)
        plain = self._rows(
            "SELECT id, session, step, time, layout, data FROM windows "
            f"WHERE stage = ?{of} AND time >= ? AND time <= ? ORDER BY id",
            (stage, *bounds),
        )
        tier = tier_for(len(blocks) * BLOCK, len(plain), max_points)
        stretches: list[tuple[int, Stretch]] = []
        for first, rows in blocks.items():
            by_tier = {row[1]: row for row in rows}
            chosen = by_tier[min((t for t in by_tier if t >= tier), default=max(by_tier))]
            stretches.append((first, Block(chosen)))
        for first, group in grouped(plain, tier):
            stretches.append((first, group))
        ordered = [stretch for _, stretch in sorted(stretches, key=lambda item: item[0])]
        begins: dict[int, int] = {}
        for stretch in ordered:
            begin = int(stretch.step.min())
            begins[stretch.session] = min(begins.get(stretch.session, begin), begin)
        begins.update(self._earlier_begins(stage, begins))
        for stretch in ordered:
            later = [step for session, step in begins.items() if session > stretch.session]
            stretch.keep = stretch.step < min(later, default=np.iinfo(np.int64).max)
            stretch.keep &= (stretch.time >= bounds[0]) & (stretch.time <= bounds[1])
        return ordered

    def _earlier_begins(self, stage: str, begins: Mapping[int, int]) -> dict[int, int]:
        """First step of each session, where a range of time leaves it out."""
        out = {}
        for session in begins:
            rows = self._rows(
                "SELECT min(step) FROM ("
                "SELECT min(step) AS step FROM windows WHERE session = ? AND stage = ? UNION ALL "
                "SELECT min(first_step) FROM blocks WHERE session = ? AND stage = ?)",
                (session, stage, session, stage),
            )
            if rows[0][0] is not None:
                out[session] = int(rows[0][0])
        return out

    def at(self, step: int, stage: str = "train") -> Moment:
        """All numbers as of a step: of the newest window that ended at or before it.

        Raises:
            HistoryError: no window had ended by then.
        """

        def read() -> Moment:
            keys = [key for key in self._ids() if key.stage == stage]
            stretches = self._stretches(stage, (-math.inf, math.inf), None)
            for stretch in reversed(stretches):
                hits = np.flatnonzero(stretch.keep & (stretch.step <= step))
                if len(hits):
                    return self._moment(stretch, int(hits[-1]), keys)
            raise HistoryError(f"no window of {stage} had ended by step {step}")

        with self._decoding():
            return self.consistent(read)

    def _moment(self, stretch: Stretch, at: int, keys: Sequence[SeriesKey]) -> Moment:
        ids = self._ids()
        stretch.keep = np.zeros(len(stretch.step), dtype=bool)
        stretch.keep[at] = True
        found = stretch.read(self._rows, [ids[key] for key in keys])
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
        found = self.many(self.list_series(stage), time_range, max_points=max_points)
        score = SeriesKey(stage, "score")
        widest = max(found.values(), key=len, default=put_together(score, []))
        columns = {}
        for key, series in found.items():
            if len(series) == len(widest):
                columns[key] = series.value
        return widest.step, widest.time, columns

    def describe(
        self, time_range: Range = None, *, stage: str = "train"
    ) -> dict[SeriesKey, dict[str, float]]:
        """Count, mean, std, min, max and quantiles of each series' windows.

        Of windows that are kept in a summary alone, the mean stands for each.
        """
        found = self.many(self.list_series(stage), time_range)
        return {key: statistics_of(series) for key, series in found.items() if len(series)}

    # -- what happened --------------------------------------------------------------------------

    def alerts(self, time_range: Range = None, *, rule: str | None = None) -> list[dict[str, Any]]:
        """What became of alerts, the oldest first.

        Returns:
            for each change ``step``, ``time``, ``rule``, ``metric``, ``layer``, ``rank``,
            ``component``, ``name`` (``pending``, ``firing``, ``resolved`` ...), ``severity``,
            ``value``, ``threshold``, ``message``.
        """
        names = (
            *("session", "step", "time", "rule", "metric", "layer", "rank", "component", "name"),
            *("before", "after", "severity", "value", "threshold", "message"),
        )
        found = self._events("transitions", names, time_range)
        for row in found:
            row["layer"] = layer_from(row["layer"])
        return [row for row in found if rule is None or row["rule"] == rule]

    def open_alerts(self) -> list[dict[str, Any]]:
        """Alerts that were firing or pending when the store was last written."""
        newest: dict[tuple[Any, ...], dict[str, Any]] = {}
        sessions = self.sessions()
        for row in self.alerts():
            if row["session"] == sessions[-1]["session"]:
                newest[row["rule"], row["metric"], row["layer"], row["rank"]] = row
        return [row for row in newest.values() if row["after"] != "inactive"]

    def health_changes(self, time_range: Range = None) -> list[dict[str, Any]]:
        """Changes of the status of components, the oldest first; '' is the system.

        Returns:
            for each ``step``, ``time``, ``component``, ``before``, ``after``.
        """
        names = ("step", "time", "component", "before", "after")
        return self._events("health_changes", names, time_range)

    def marks(self, time_range: Range = None) -> list[dict[str, Any]]:
        """Notes of the user's: ``step``, ``time``, ``label``."""
        return self._events("marks", ("step", "time", "label"), time_range)

    def _events(self, table: str, names: Sequence[str], time_range: Range) -> list[dict[str, Any]]:
        low, high = self.bounds(time_range)
        of = "" if self._session is None else f" AND session = {self._session:d}"
        rows = self._rows(
            f"SELECT {', '.join(names)} FROM {table} WHERE time >= ? AND time <= ?{of} ORDER BY id",
            (low, high),
        )
        return [dict(zip(names, row, strict=True)) for row in rows]

    def errors(self, time_range: Range = None) -> list[dict[str, Any]]:
        """Errors by kind, layer and rank, of all ranks whose files lie beside this one.

        Returns:
            for each kind ``origin``, ``component``, ``layer``, ``rank``, ``type``, ``message`` (of
            the first), ``traceback``, ``count``, ``first_step``, ``last_step``, ``first_time``,
            ``last_time``, and ``over_time``: pairs of step and count, of the newest.
        """
        low, high = self.bounds(time_range)
        found = self._error_kinds(low, high)
        if self.path is not None:
            for other in sorted(self.path.parent.glob(f"{self.path.stem}.rank_*.sqlite")):
                with RunHistory(other) as store:
                    found += store._error_kinds(low, high)
        return sorted(found, key=lambda row: (row["first_time"], row["rank"]))

    def _error_kinds(self, low: float, high: float) -> list[dict[str, Any]]:
        names = (
            *("id", "origin", "component", "layer", "rank", "type", "message", "traceback"),
            *("count", "first_step", "last_step", "first_time", "last_time"),
        )
        rows = self._rows(
            f"SELECT {', '.join(names)} FROM error_kinds WHERE last_time >= ? AND first_time <= ?",
            (low, high),
        )
        times: dict[int, list[tuple[int, int]]] = {}
        for kind, step, count in self._rows(
            "SELECT kind, step, count FROM errors WHERE time >= ? AND time <= ? ORDER BY id",
            (low, high),
        ):
            times.setdefault(kind, []).append((step, count))
        out = []
        for row in rows:
            error = dict(zip(names, row, strict=True))
            error["layer"] = layer_from(error["layer"])
            error["over_time"] = times.get(error.pop("id"), [])
            out.append(error)
        return out

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the newest session, secrets masked."""
        sessions = self.sessions()
        found: dict[str, Any] = sessions[-1]["config"] if sessions else {}
        return found


def find_store(path: Path) -> Path:
    """The store that a path names: itself, or the one in that folder.

    Raises:
        HistoryError: there is none.
    """
    if path.is_dir():
        return path / FILE
    return path


def _session(row: Sequence[Any]) -> dict[str, Any]:
    return {
        "session": row[0],
        "started": row[1],
        "ended": row[2],
        "outcome": row[3],
        "state": _state(row[2], row[4], row[5]),
        "host": row[4],
        "pid": row[5],
        "world_size": row[6],
        "git_commit": row[7],
        "versions": json.loads(row[8]),
        "config": json.loads(row[9]),
        "sources": json.loads(row[10]),
        "watches": row[11],
    }


def _two_times(given: tuple[float, ...]) -> tuple[float, float]:
    if len(given) == 2 and all(_is_number(time) for time in given):
        low, high = (float(time) for time in given)
        if low <= high:
            return low, high
    raise ValueError(
        f"time_range must be two times in seconds since the Unix epoch, the earlier first, "
        f"got {given!r}"
    )


def _seconds(given: object) -> float:
    if isinstance(given, str):
        try:
            return parse_duration(given)
        except ValueError:
            pass  # one message for all that is none
    elif _is_number(given) and 0 <= float(given) < math.inf:
        return float(given)
    raise ValueError(
        "time_range must be a duration such as '1h', '30m' or '90s', or seconds, 0 or more, "
        f"got {given!r}"
    )


def _is_number(given: object) -> TypeGuard[float]:
    if isinstance(given, bool) or not isinstance(given, (int, float, np.number)):
        return False
    return not math.isnan(float(given))


def _state(ended: float | None, host: str, pid: int) -> str:
    if ended is not None:
        return "ended"
    if host != socket.gethostname():
        return "unknown"
    return "running" if is_alive(pid) else "died"


def _order(key: SeriesKey) -> tuple[Any, ...]:
    names = list(BY_NAME)
    name = names.index(key.name) if key.name in BY_NAME else len(names)
    layer = (-1, 0, "") if key.layer is None else layer_order(key.layer)
    return key.stage, name, layer, -1 if key.rank is None else key.rank
