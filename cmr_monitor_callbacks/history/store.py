"""The writing side of the store: one window is one transaction."""

from __future__ import annotations

import errno
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.config.history import BLOCK, HistoryConfig
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history.blocks import TIERS, last_of_each, roll_up, to_bytes
from cmr_monitor_callbacks.history.columns import (
    AnyColumns,
    Array,
    Columns,
    SampleColumns,
    SeriesKey,
    Shape,
    layer_from,
    layer_text,
    row_of,
    shape_of,
)
from cmr_monitor_callbacks.history.retention import retain
from cmr_monitor_callbacks.history.schema import leave_one_file, open_to_write, transaction
from cmr_monitor_callbacks.resources import RESOURCES, Sample
from cmr_monitor_callbacks.snapshot import Snapshot

_ERRORS_KEPT: Final = 10_000
_KINDS_KEPT: Final = 1_000
Change = tuple[str, str, str, int, float]
"""Of a component's health: its name ('' the system), status before, after, step, time."""


@dataclass(frozen=True)
class RunInfo:
    """What a session of a run is known by.

    Attributes:
        rank: of this process.
        world_size: processes of the run.
        host: name of the machine.
        config: settings as plain data, secrets masked.
        versions: of the libraries, by name.
        git_commit: of the folder that the run was started in; None where it is none of git's.
    """

    rank: int = 0
    world_size: int = 1
    host: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None


class HistoryStore:
    """A store that is being written, by one thread at a time.

    Args:
        path: of the file; None: in memory.
        config: how much is kept.
        info: of the run.
        now: the wall clock's reading at the start.
        in_memory: windows of a stage that are kept where there is no file.

    Attributes:
        connection: to the database.
        session: number of this session in the store.
        others: other processes that seem to write to the same file now.

    Raises:
        HistoryError: what lies at ``path`` is no store, or of a newer version.
        sqlite3.Error: the file cannot be opened or written.

    >>> store = HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0)
    >>> store.mark("warm-up over", step=5, time=1.0)
    >>> store.end(2.0, "completed")
    """

    def __init__(
        self,
        path: Path | None,
        config: HistoryConfig,
        info: RunInfo,
        now: float,
        in_memory: int = BLOCK,
    ) -> None:
        self.path = path
        self._in_memory = in_memory
        self._config = config
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.connection = open_to_write(path)
        self._file = None if path is None else _identity(path)
        try:
            self._begin(info, now)
        except BaseException:
            self.connection.close()
            raise

    def _begin(self, info: RunInfo, now: float) -> None:
        self.others = self._other_writers(info.host)
        versions, config = json.dumps(dict(info.versions)), json.dumps(dict(info.config))
        cursor = self.connection.execute(
            "INSERT INTO sessions (started, host, pid, rank, world_size, git_commit, versions, "
            "config) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                now,
                info.host,
                os.getpid(),
                info.rank,
                info.world_size,
                info.git_commit,
                versions,
                config,
            ),
        )
        self.session = int(cursor.lastrowid or 0)
        self._series: dict[SeriesKey, int] = {}
        self._plans: dict[Shape, _Plan] = {}
        self._samples = _Plan(SampleColumns())
        self._unpacked: dict[str, int] = {}
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._sources: str | None = None
        self._version = self._data_version()
        for row in self.connection.execute("SELECT id, stage, name, layer, rank FROM series"):
            self._series[SeriesKey(row[1], row[2], layer_from(row[3]), row[4])] = row[0]

    def _other_writers(self, host: str) -> list[str]:
        found = []
        rows = self.connection.execute("SELECT host, pid FROM sessions WHERE ended IS NULL")
        for other, pid in rows:
            if other == host and pid != os.getpid() and is_alive(pid):
                found.append(f"process {pid}")
        return found

    def is_lost(self) -> bool:
        """Whether the file was deleted or replaced since it was opened."""
        return self.path is not None and _identity(self.path) != self._file

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        try:
            with transaction(self.connection):
                yield
        except BaseException:
            self._forget_what_was_new()
            raise

    def _forget_what_was_new(self) -> None:
        """What a rolled back transaction had added is not there."""
        self._plans.clear()
        self._samples = _Plan(SampleColumns())
        self._kinds.clear()
        self._series = {
            SeriesKey(row[1], row[2], layer_from(row[3]), row[4]): row[0]
            for row in self.connection.execute("SELECT id, stage, name, layer, rank FROM series")
        }

    # -- windows ----------------------------------------------------------------------------

    def window(
        self,
        snapshot: Snapshot,
        transitions: Sequence[Transition] = (),
        changes: Sequence[Change] = (),
    ) -> None:
        """Keep a window: its numbers, and what became of alerts and health."""
        shape = shape_of(snapshot)
        plan = self._plans.get(shape)
        if plan is None:
            columns = Columns(snapshot, self._config.ranks_up_to)
            plan = self._plans[shape] = _Plan(columns)
        values = plan.columns.values(snapshot)
        if transitions or changes or plan.meets_new(values):
            with self.transaction():
                if plan.meets_new(values):
                    self._extend(plan, values)
                self._insert(snapshot, plan, values)
                self._insert_alerts(transitions, changes)
        else:  # one statement is a transaction
            self._insert(snapshot, plan, values)
        unpacked = self._unpacked.get(snapshot.stage, 0) + 1
        self._unpacked[snapshot.stage] = unpacked

    def samples(self, samples: Sequence[Sample]) -> None:
        """Keep samples of the machine: each is a window of a stage of its own."""
        with self.transaction():
            for sample in samples:
                plan = self._samples
                values = plan.columns.values(sample)
                if plan.meets_new(values):
                    self._extend(plan, values)
                self._insert(sample, plan, values)
        self._unpacked[RESOURCES] = self._unpacked.get(RESOURCES, 0) + len(samples)

    def _insert(self, snapshot: Snapshot | Sample, plan: _Plan, values: Array) -> None:
        data = values[plan.index].astype("<f8", copy=False).tobytes()
        self.connection.execute(
            "INSERT INTO windows (session, stage, step, time, layout, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (self.session, snapshot.stage, snapshot.step, snapshot.time, plan.layout, data),
        )

    def _extend(self, plan: _Plan, values: Array) -> None:
        """Make room for series that have data for the first time."""
        seen = plan.seen | (values == values)
        index = np.flatnonzero(seen)
        ids = []
        for at in index.tolist():
            key = plan.columns.keys[at]
            found = self._series.get(key)
            if found is None:
                found = self._series[key] = self._new_series(key)
            ids.append(found)
        cursor = self.connection.execute(
            "INSERT INTO layouts (series) VALUES (?)", (np.array(ids, dtype="<i4").tobytes(),)
        )
        plan.seen, plan.index, plan.layout = seen, index, int(cursor.lastrowid or 0)

    def _new_series(self, key: SeriesKey) -> int:
        row = row_of(key)
        self.connection.execute(
            "INSERT OR IGNORE INTO series (stage, name, component, layer, rank, over, kind, unit, "
            "polarity) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        (found,) = self.connection.execute(  # another process may have been first
            "SELECT id FROM series WHERE stage = ? AND name = ? AND ifnull(layer, '') = ? "
            "AND ifnull(rank, -1) = ?",
            (key.stage, key.name, row[3] or "", -1 if key.rank is None else key.rank),
        ).fetchone()
        return int(found)

    def alerts(self, transitions: Sequence[Transition], changes: Sequence[Change]) -> None:
        """Keep what became of alerts and health."""
        with self.transaction():
            self._insert_alerts(transitions, changes)

    def _insert_alerts(self, transitions: Sequence[Transition], changes: Sequence[Change]) -> None:
        self.connection.executemany(
            "INSERT INTO transitions (session, step, time, rule, metric, layer, rank, component, "
            "name, before, after, severity, value, threshold, message) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self.session,
                    t.step,
                    t.time,
                    t.state.rule,
                    t.state.metric,
                    layer_text(t.state.layer),
                    t.state.rank,
                    t.state.component,
                    t.name,
                    t.before.value,
                    t.state.phase.value,
                    None if t.severity is None else t.severity.value,
                    t.state.value,
                    t.state.threshold,
                    t.message,
                )
                for t in transitions
            ],
        )
        self.connection.executemany(
            "INSERT INTO health_changes (session, component, before, after, step, time) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(self.session, *change) for change in changes],
        )

    # -- all else ---------------------------------------------------------------------------

    def mark(self, label: str, step: int, time: float) -> None:
        """Keep a note of the user's, at a step."""
        self.connection.execute(
            "INSERT INTO marks (session, step, time, label) VALUES (?, ?, ?, ?)",
            (self.session, step, time, label),
        )

    def describe(self, sources: Mapping[str, str], watches: str) -> None:
        """Keep where the numbers come from; costs nothing while that stays the same."""
        text = json.dumps([dict(sources), watches])
        if text != self._sources:
            self.connection.execute(
                "UPDATE sessions SET sources = ?, watches = ? WHERE id = ?",
                (json.dumps(dict(sources)), watches, self.session),
            )
            self._sources = text

    def errors(self, records: Iterable[ErrorRecord]) -> None:
        """Keep errors; the traceback once for each kind."""
        with self.transaction():
            for record in records:
                self._error(record)
            last = "SELECT max(id) FROM errors"
            self.connection.execute(f"DELETE FROM errors WHERE id <= ({last}) - {_ERRORS_KEPT}")

    def _error(self, record: ErrorRecord) -> None:
        layer = layer_text(record.layer)
        key: tuple[Any, ...] = (
            record.origin,
            record.component,
            layer,
            record.rank,
            record.type,
            record.traceback,
        )
        if not record.traceback:
            key += (record.message,)
        kind = self._kinds.get(key)
        if kind is None and len(self._kinds) >= _KINDS_KEPT:
            return  # counted in error_count; a model whose every error is of a new kind
        if kind is None:
            cursor = self.connection.execute(
                "INSERT INTO error_kinds (session, origin, component, layer, rank, type, message, "
                "traceback, count, first_step, last_step, first_time, last_time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
                (
                    self.session,
                    record.origin,
                    record.component,
                    layer,
                    record.rank,
                    record.type,
                    record.message,
                    record.traceback,
                    record.step,
                    record.step,
                    record.time,
                    record.time,
                ),
            )
            kind = self._kinds[key] = int(cursor.lastrowid or 0)
        self.connection.execute(
            "UPDATE error_kinds SET count = count + ?, last_step = ?, last_time = ? WHERE id = ?",
            (record.count, record.step, record.time, kind),
        )
        self.connection.execute(
            "INSERT INTO errors (kind, step, time, count, message) VALUES (?, ?, ?, ?, ?)",
            (kind, record.step, record.time, record.count, record.message),
        )

    def requests(self, now: float) -> list[dict[str, Any]]:
        """What other processes ask of the run since the last call, such as acknowledgements."""
        version = self._data_version()
        if version == self._version:  # nobody else has written
            return []
        self._version = version
        rows = self.connection.execute(
            "SELECT id, what FROM requests WHERE taken IS NULL AND time >= "
            "(SELECT started FROM sessions WHERE id = ?) ORDER BY id",
            (self.session,),
        ).fetchall()
        self.connection.executemany(
            "UPDATE requests SET taken = ? WHERE id = ?", [(now, row[0]) for row in rows]
        )
        return [json.loads(row[1]) for row in rows]

    def _data_version(self) -> int:
        (version,) = self.connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def end(self, now: float, outcome: str) -> None:
        """Say how the session ended; the connection is to be closed next."""
        self.connection.execute(
            "UPDATE sessions SET ended = ?, outcome = ? WHERE id = ?", (now, outcome, self.session)
        )
        if self.path is not None:
            leave_one_file(self.connection)

    # -- packing and retention ----------------------------------------------------------------

    def tidy(self, now: float) -> None:
        """Pack windows, where enough have come together, and delete what is too old or too much."""
        for stage, count in list(self._unpacked.items()):
            if self.path is None:
                if count >= 2 * self._in_memory:
                    self._drop_oldest(stage)
            elif count >= 2 * BLOCK:
                self.pack(stage)
                retain(self.connection, self._config, now)
                self._unpacked[stage] = count - BLOCK

    def _drop_oldest(self, stage: str) -> None:
        """In memory there is no summary of what is dropped."""
        newest = "SELECT id FROM windows WHERE stage = ? ORDER BY id DESC LIMIT ?"
        self.connection.execute(
            f"DELETE FROM windows WHERE stage = ? AND id NOT IN ({newest})",
            (stage, stage, self._in_memory),
        )
        self._unpacked[stage] = self._in_memory

    def pack(self, stage: str) -> None:
        """Pack the oldest `BLOCK` windows of a stage of this session, with their roll-ups."""
        rows = self.connection.execute(
            "SELECT id, step, time, layout, data FROM windows WHERE session = ? AND stage = ? "
            "ORDER BY id LIMIT ?",
            (self.session, stage, BLOCK),
        ).fetchall()
        steps = np.array([row[1] for row in rows], dtype=np.int64)
        times = np.array([row[2] for row in rows])
        table = _by_series(rows, self._layouts({row[3] for row in rows}))
        with self.transaction():
            for tier in TIERS:
                self._insert_block(rows[0][0], tier, stage, steps, times, table)
            self.connection.execute(
                "DELETE FROM windows WHERE session = ? AND stage = ? AND id <= ?",
                (self.session, stage, rows[-1][0]),
            )

    def _insert_block(
        self,
        first_window: int,
        tier: int,
        stage: str,
        steps: NDArray[np.int64],
        times: Array,
        table: Mapping[int, Array],
    ) -> None:
        size = 10**tier
        at = (last_of_each(steps, size), last_of_each(times, size))
        cursor = self.connection.execute(
            "INSERT INTO blocks (first_window, tier, session, stage, rows, first_step, last_step, "
            "first_time, last_time, steps, times) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                first_window,
                tier,
                self.session,
                stage,
                len(at[0]),
                int(steps.min()),
                int(steps.max()),
                float(times.min()),
                float(times.max()),
                to_bytes(at[0]),
                to_bytes(at[1]),
            ),
        )
        block = int(cursor.lastrowid or 0)
        self.connection.executemany(
            "INSERT INTO columns (series, block, data) VALUES (?, ?, ?)",
            (
                (
                    series,
                    block,
                    to_bytes(values if tier == 0 else np.concatenate(roll_up(values, size))),
                )
                for series, values in table.items()
            ),
        )

    def _layouts(self, ids: Iterable[int]) -> dict[int, NDArray[np.int32]]:
        return {id_: read_layout(self.connection, id_) for id_ in ids}


class _Plan:
    """Which columns of a snapshot's shape have ever had data."""

    def __init__(self, columns: AnyColumns) -> None:
        self.columns = columns
        self.seen = np.zeros(len(columns.keys), dtype=bool)
        self.index = np.zeros(0, dtype=np.intp)
        self.layout = 0

    def meets_new(self, values: Array) -> bool:
        """Whether a series has data for the first time."""
        present = values == values
        return self.layout == 0 or bool((present > self.seen).any())


def read_layout(connection: sqlite3.Connection, layout: int) -> NDArray[np.int32]:
    """Ids of the series of a layout, in order."""
    (data,) = connection.execute("SELECT series FROM layouts WHERE id = ?", (layout,)).fetchone()
    return np.frombuffer(data, dtype="<i4")


def _by_series(
    rows: Sequence[tuple[Any, ...]], layouts: Mapping[int, NDArray[np.int32]]
) -> dict[int, Array]:
    """Values of each series in windows that may be of several layouts; none without any data."""
    table: dict[int, Array] = {}
    for layout, ids in layouts.items():
        at = [i for i, row in enumerate(rows) if row[3] == layout]
        values = np.frombuffer(b"".join(rows[i][4] for i in at), dtype="<f8")
        for series, column in zip(ids.tolist(), values.reshape(len(at), len(ids)).T, strict=True):
            if series not in table:
                table[series] = np.full(len(rows), math.nan)
            table[series][at] = column
    return {series: v for series, v in table.items() if not np.isnan(v).all()}


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
