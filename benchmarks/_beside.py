"""A window of the history beside other ways to keep it: pairs that alternate in one run."""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _windows import KEYS, START, Array, Snapshots
from torch.utils.tensorboard import SummaryWriter

from cmr_monitor_callbacks import HistoryConfig, Snapshot
from cmr_monitor_callbacks.catalogue import BY_NAME
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.history import HistoryStore, HistoryWriter, RunInfo
from cmr_monitor_callbacks.history.series import label_of
from cmr_monitor_callbacks.sinks.base import WindowReport
from cmr_monitor_callbacks.sinks.tensorboard import TensorBoardSink


def seconds_of(what: Callable[..., Any], *args: Any) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    what(*args)
    return time.perf_counter() - start


class Bare:
    """A bare insert of a window's bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.make()

    def make(self) -> None:
        """The table."""
        self.connection.execute(
            "CREATE TABLE windows (id INTEGER PRIMARY KEY, step INTEGER, time REAL, data BLOB)"
        )

    def write(self, step: int, now: float, data: bytes) -> None:
        """A window, in a transaction of its own."""
        self.connection.execute(
            "INSERT INTO windows (step, time, data) VALUES (?, ?, ?)", (step, now, data)
        )

    def size(self) -> int:
        """Bytes of the file, when its log is folded into it."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return self.path.stat().st_size


class Rows(Bare):
    """A row for each value; no index, which reading a series would need."""

    def make(self) -> None:
        """The table."""
        self.connection.execute(
            "CREATE TABLE points (series INTEGER, step INTEGER, time REAL, value REAL)"
        )

    def write_row(self, step: int, now: float, row: Array) -> None:
        """A window, in a transaction of its own; NaN is NULL."""
        values = row.tolist()
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "INSERT INTO points VALUES (?, ?, ?, ?)",
            [(i, step, now, value) for i, value in enumerate(values)],
        )
        self.connection.execute("COMMIT")


class IndexedRows(Rows):
    """The same, in the order in which a series is read."""

    def make(self) -> None:
        """The table."""
        self.connection.execute(
            "CREATE TABLE points (series INTEGER, step INTEGER, time REAL, value REAL, "
            "PRIMARY KEY (series, step)) WITHOUT ROWID"
        )


class Paired(HistoryWriter):
    """A writer that times each of its pieces of work, and a bare insert before or after it."""

    def beside(self, bare: Bare) -> None:
        """What to compare with."""
        self.bare, self.ours, self.bares = bare, [], []  # type: ignore[var-annotated]
        self.now: tuple[int, float, bytes] = (0, 0.0, b"")

    def _try(self, work: Any) -> bool:
        first = len(self.ours) % 2
        if first:
            self.bares.append(seconds_of(self.bare.write, *self.now))
        start = time.perf_counter()
        done = super()._try(work)
        self.ours.append(time.perf_counter() - start)
        if not first:
            self.bares.append(seconds_of(self.bare.write, *self.now))
        return done


def flush(folder: Path, pairs: int) -> dict[str, Any]:
    """Microseconds of a window: the writer's, a bare insert's, and the training thread's."""
    writer = Paired(folder / "paired.sqlite", HistoryConfig(), RunInfo, lambda: START)
    writer.beside(Bare(folder / "bare.sqlite"))
    puts = []
    for _, row, snapshot in Snapshots().all(pairs):
        writer.now = (snapshot.step, snapshot.time, row.tobytes())
        puts.append(seconds_of(writer.window, snapshot))
        writer.flush()
    writer.close("completed")
    ours, bare = np.array(writer.ours), np.array(writer.bares)
    few = np.array_split(np.arange(100, pairs), 7)
    return {
        "training_thread_us": spread([1e6 * statistics.median(np.array(puts)[p]) for p in few]),
        "writer_us": spread([1e6 * float(np.median(ours[p])) for p in few]),
        "bare_insert_us": spread([1e6 * float(np.median(bare[p])) for p in few]),
        "writer_over_bare": spread([float(np.median(ours[p]) / np.median(bare[p])) for p in few]),
        "mean_with_packing_over_bare": round(float(ours[100:].mean() / bare[100:].mean()), 2),
    }


def others(folder: Path, windows: int) -> dict[str, Any]:
    """Microseconds of a window and bytes of a value, in three kinds of file."""
    store = HistoryStore(folder / "store.sqlite", HistoryConfig(), RunInfo(), now=START)
    rows = Rows(folder / "rows.sqlite")
    indexed = IndexedRows(folder / "indexed.sqlite")
    writer = SummaryWriter(folder / "events")
    sink = TensorBoardSink(writer, custom_scalars=False)
    tags = [f"cmr_{BY_NAME[key.name].component}/{label_of(key)}" for key in KEYS]
    spent: dict[str, list[float]] = {
        name: [] for name in ("store", "rows", "indexed rows", "events")
    }

    def window(snapshot: Snapshot) -> None:
        store.window(snapshot)
        store.tidy(snapshot.time)

    def event(report: WindowReport) -> None:
        sink.write(report)
        writer.flush()  # beside the sink's own thread: what this thread waits is the same

    for _, row, snapshot in Snapshots().all(windows):
        known = np.flatnonzero(~np.isnan(row)).tolist()
        report = WindowReport(
            snapshot, HealthReport(), (), [tags[at] for at in known], row[known].tolist()
        )
        spent["store"].append(seconds_of(window, snapshot))
        for name, table in (("rows", rows), ("indexed rows", indexed)):
            spent[name].append(seconds_of(table.write_row, snapshot.step, snapshot.time, row))
        spent["events"].append(seconds_of(event, report))
    store.end(START, "completed")
    store.connection.close()
    sink.close()
    writer.close()
    values = windows * len(KEYS)
    size = {
        "store": (folder / "store.sqlite").stat().st_size,
        "rows": rows.size(),
        "indexed rows": indexed.size(),
        "events": sum(part.stat().st_size for part in (folder / "events").iterdir()),
    }
    mean = {name: statistics.mean(times[50:]) for name, times in spent.items()}
    return {
        "windows": windows,
        "us_per_window": {name: round(1e6 * value, 1) for name, value in mean.items()},
        "over_store": {name: round(value / mean["store"], 2) for name, value in mean.items()},
        "bytes_per_value": {name: round(size[name] / values, 2) for name in size},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and greatest."""
    return {
        "min": round(min(values), 2),
        "median": round(statistics.median(values), 2),
        "max": round(max(values), 2),
    }
