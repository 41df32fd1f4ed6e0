"""The writing side of the store: one window is one transaction."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from cmr_monitor_callbacks.config.history import BLOCK, HistoryConfig
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history.columns import (
    Array,
    Columns,
    SampleColumns,
    SeriesKey,
    Shape,
    layer_from,
    row_of,
    shape_of,
)
from cmr_monitor_callbacks.history.files import identity
from cmr_monitor_callbacks.history.happenings import Change, Happenings
from cmr_monitor_callbacks.history.packing import pack
from cmr_monitor_callbacks.history.plans import Plan
from cmr_monitor_callbacks.history.retention import retain
from cmr_monitor_callbacks.history.schema import leave_one_file, open_to_write, transaction
from cmr_monitor_callbacks.history.sessions import RunInfo, begin_session, other_writers
from cmr_monitor_callbacks.resources import RESOURCES, Sample
from cmr_monitor_callbacks.snapshot import Snapshot

_FLOATS: Final = np.dtype("<f8")


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
        self._name = None if path is None else os.fspath(path)
        self._file = None if self._name is None else identity(self._name)
        try:
            self._begin(info, now)
        except BaseException:
            self.connection.close()
            raise

    def _begin(self, info: RunInfo, now: float) -> None:
        self.others = other_writers(self.connection, info.host)
        self.session = begin_session(self.connection, info, now)
        self._happenings = Happenings(self.connection, self.session)
        self._series: dict[SeriesKey, int] = {}
        self._plans: dict[Shape, Plan[Columns]] = {}
        self._samples = Plan(SampleColumns())
        self._unpacked: dict[str, int] = {}
        self._held: dict[str, deque[int]] = {}
        self._sources: str | None = None
        self._version = self._data_version()
        if self.path is not None:
            retain(self.connection, self._config, now)
        for row in self.connection.execute("SELECT id, stage, name, layer, rank FROM series"):
            self._series[SeriesKey(row[1], row[2], layer_from(row[3]), row[4])] = row[0]

    def is_lost(self) -> bool:
        """Whether the file was deleted or replaced since it was opened."""
        return self._name is not None and identity(self._name) != self._file

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
        self._samples = Plan(SampleColumns())
        self._happenings.forget()
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
            plan = self._plans[shape] = Plan(columns)
        gathered = plan.columns.gathered(snapshot)
        new = plan.meets_new(gathered)
        if transitions or changes or new:
            with self.transaction():
                if new:
                    self._extend(plan, gathered)
                self._insert(snapshot, plan, gathered)
                self._happenings.alerts(transitions, changes)
        else:  # one statement is a transaction
            self._insert(snapshot, plan, gathered)
        unpacked = self._unpacked.get(snapshot.stage, 0) + 1
        self._unpacked[snapshot.stage] = unpacked

    def samples(self, samples: Sequence[Sample]) -> None:
        """Keep samples of the machine: each is a window of a stage of its own."""
        with self.transaction():
            for sample in samples:
                plan = self._samples
                gathered = plan.columns.gathered(sample)
                if plan.meets_new(gathered):
                    self._extend(plan, gathered)
                self._insert(sample, plan, gathered)
        self._unpacked[RESOURCES] = self._unpacked.get(RESOURCES, 0) + len(samples)

    def _insert(self, snapshot: Snapshot | Sample, plan: Plan[Any], gathered: Array) -> None:
        data = gathered.take(plan.index).astype(_FLOATS, copy=False).tobytes()
        cursor = self.connection.execute(
            "INSERT INTO windows (session, stage, step, time, layout, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (self.session, snapshot.stage, snapshot.step, snapshot.time, plan.layout, data),
        )
        if self.path is None:
            self._held.setdefault(snapshot.stage, deque()).append(int(cursor.lastrowid or 0))

    def _extend(self, plan: Plan[Any], gathered: Array) -> None:
        """Make room for series that have data for the first time."""
        seen = plan.extended(gathered)
        ids = []
        for at in seen.tolist():
            key = plan.columns.keys[at]
            found = self._series.get(key)
            if found is None:
                found = self._series[key] = self._new_series(key)
            ids.append(found)
        cursor = self.connection.execute(
            "INSERT INTO layouts (series) VALUES (?)", (np.array(ids, dtype="<i4").tobytes(),)
        )
        plan.take(seen, int(cursor.lastrowid or 0))

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
            self._happenings.alerts(transitions, changes)

    def mark(self, label: str, step: int, time: float) -> None:
        """Keep a note of the user's, at a step."""
        self._happenings.mark(label, step, time)

    def errors(self, records: Iterable[ErrorRecord]) -> None:
        """Keep errors; the traceback once for each kind."""
        with self.transaction():
            self._happenings.errors(records)

    def diagnostics(self, found: Mapping[str, Any], text: str) -> None:
        """Keep what the diagnostics found: ``found``, and as JSON."""
        with self.transaction():
            self._happenings.diagnostics(found, text)

    def describe(self, sources: Mapping[str, str], watches: str) -> None:
        """Keep where the numbers come from; costs nothing while that stays the same."""
        text = json.dumps([dict(sources), watches])
        if text != self._sources:
            self.connection.execute(
                "UPDATE sessions SET sources = ?, watches = ? WHERE id = ?",
                (json.dumps(dict(sources)), watches, self.session),
            )
            self._sources = text

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
        if self.path is None:
            self._forget_oldest()
            return
        for stage, count in list(self._unpacked.items()):
            if count >= 2 * BLOCK:
                pack(self.connection, self.session, stage)
                retain(self.connection, self._config, now)
                self._count_unpacked()

    def _count_unpacked(self) -> None:
        """Limits may have deleted some, of any stage."""
        found = self.connection.execute(
            "SELECT stage, count(*) FROM windows WHERE session = ? GROUP BY stage", (self.session,)
        )
        self._unpacked = dict(found.fetchall())

    def _forget_oldest(self) -> None:
        """In memory there is no summary of what is dropped."""
        most = self._in_memory
        for ids in self._held.values():
            while len(ids) > most:
                self.connection.execute("DELETE FROM windows WHERE id = ?", (ids.popleft(),))
        self._happenings.keep_newest(most)
