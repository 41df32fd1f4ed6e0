"""The store's tables, their version, and how a file is opened; `docs/history.md` describes them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cmr_monitor_callbacks.errors import CMRMonitorError

VERSION: Final = 2
"""Of the schema (``PRAGMA user_version``). A change of the tables adds a step to `_MIGRATIONS`."""
APPLICATION: Final = 0x434D5248
"""``PRAGMA application_id``: "CMRH"."""
BUSY: Final = 5.0
"""Seconds that a connection waits for another one's lock."""

_DIAGNOSTICS: Final = """CREATE TABLE diagnostics (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    status TEXT NOT NULL,
    found TEXT NOT NULL
)"""
_TABLES: Final = f"""{_DIAGNOSTICS};
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    started REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    world_size INTEGER NOT NULL,
    git_commit TEXT,
    versions TEXT NOT NULL,
    config TEXT NOT NULL,
    sources TEXT NOT NULL DEFAULT '{{}}',
    watches TEXT NOT NULL DEFAULT ''
);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    stage TEXT NOT NULL,
    name TEXT NOT NULL,
    component TEXT NOT NULL,
    layer TEXT,
    rank INTEGER,
    over TEXT NOT NULL,
    kind TEXT NOT NULL,
    unit TEXT NOT NULL,
    polarity TEXT NOT NULL
);
CREATE UNIQUE INDEX series_key ON series (stage, name, ifnull(layer, ''), ifnull(rank, -1));
CREATE TABLE layouts (id INTEGER PRIMARY KEY, series BLOB NOT NULL);
CREATE TABLE windows (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    layout INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE blocks (
    id INTEGER PRIMARY KEY,
    first_window INTEGER NOT NULL,
    tier INTEGER NOT NULL,
    session INTEGER NOT NULL,
    stage TEXT NOT NULL,
    rows INTEGER NOT NULL,
    first_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    first_time REAL NOT NULL,
    last_time REAL NOT NULL,
    steps BLOB NOT NULL,
    times BLOB NOT NULL
);
CREATE TABLE columns (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL,
    block INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX columns_by_series ON columns (series, block);
CREATE INDEX columns_by_block ON columns (block);
CREATE TABLE transitions (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    rule TEXT NOT NULL,
    metric TEXT NOT NULL,
    layer TEXT,
    rank INTEGER,
    component TEXT NOT NULL,
    name TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    severity TEXT,
    value REAL,
    threshold REAL,
    message TEXT NOT NULL
);
CREATE TABLE health_changes (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    component TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL
);
CREATE TABLE error_kinds (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    origin TEXT NOT NULL,
    component TEXT NOT NULL,
    layer TEXT,
    rank INTEGER NOT NULL,
    type TEXT NOT NULL,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL,
    count INTEGER NOT NULL,
    first_step INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    first_time REAL NOT NULL,
    last_time REAL NOT NULL
);
CREATE TABLE errors (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    count INTEGER NOT NULL,
    message TEXT NOT NULL
);
CREATE TABLE marks (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    label TEXT NOT NULL
);
CREATE TABLE requests (id INTEGER PRIMARY KEY, time REAL NOT NULL, what TEXT NOT NULL, taken REAL);
"""
_MIGRATIONS: Final[dict[int, str]] = {1: _DIAGNOSTICS}
"""By the version that they start from: what makes the next version of it."""


class HistoryError(CMRMonitorError, RuntimeError):
    """A store is missing, empty, locked, damaged, or of a newer version than this one."""


def open_to_write(path: Path | None) -> sqlite3.Connection:
    """A connection to a store, made or migrated where needed.

    Args:
        path: of the file; None: in memory.

    Raises:
        HistoryError: what lies there is no store, or of a newer version.
        sqlite3.Error: it cannot be opened or written.
    """
    name = ":memory:" if path is None else str(path)
    # the writer's thread, and the one that ends it
    connection = sqlite3.connect(name, BUSY, isolation_level=None, check_same_thread=False)
    try:
        version = _version(connection, name)
        if version is None:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # what answers other than WAL (a network's file system) still works, more slowly
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version is None:
            _make(connection)
        elif version < VERSION:
            _migrate(connection, version)
    except BaseException:
        connection.close()
        raise
    return connection


def leave_one_file(connection: sqlite3.Connection) -> None:
    """Fold the log beside a store into it, so that who reads it later leaves no log there either.

    Not while another process has it open: then the last of them that writes does this.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError as error:
        if not _is_locked(error):
            raise


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that reads a store and changes nothing.

    Raises:
        HistoryError: there is none, or it cannot be read; the message says what to do.
    """
    if _size(path) == 0:
        raise HistoryError(f"the history {str(path)!r} is empty: the run has ended no window yet")
    errors: list[sqlite3.Error] = []
    # where the folder cannot be written, SQLite cannot share a store that somebody else may write
    for options in ("mode=ro", "mode=ro&immutable=1"):
        uri = f"file:{quote(os.fsencode(path.resolve()))}?{options}"
        try:
            connection = sqlite3.connect(uri, BUSY, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            errors.append(error)
            continue
        try:
            version = _version(connection, str(path))
        except sqlite3.Error as error:
            connection.close()
            errors.append(error)
            if _is_locked(error):  # to look past the lock would be to read half of something
                break
            continue
        except HistoryError:
            connection.close()
            raise
        if version is None:
            connection.close()
            text = f"the history {str(path)!r} is empty: the run has ended no window yet"
            raise HistoryError(text)
        return connection
    raise unreadable(path, errors[0])


def _size(path: Path) -> int:
    """Bytes of a file; SQLite itself would not say why it cannot open one."""
    try:
        if not path.is_file():
            raise HistoryError(f"there is no history at {str(path)!r}")
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise HistoryError(
            f"the history {str(path)!r} cannot be read: {error.strerror or error}"
        ) from None


def unreadable(path: Path, error: Exception) -> HistoryError:
    """What to say of a store that SQLite cannot read."""
    if _is_locked(error):
        return HistoryError(
            f"the history {str(path)!r} is locked by another process for more than {BUSY:g} s; "
            "try again"
        )
    if path.name != ":memory:" and not path.exists():
        return HistoryError(f"there is no history at {str(path)!r}: it was deleted")
    return HistoryError(
        f"the history {str(path)!r} cannot be read ({error}); `sqlite3 {path.name} .recover` may "
        "save what is left of it"
    )


def _is_locked(error: Exception) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _version(connection: sqlite3.Connection, name: str) -> int | None:
    """The version of the tables; None where there are none yet."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        return None
    if application != APPLICATION:
        raise HistoryError(f"{name!r} is a database, but not a history of this monitor")
    if version > VERSION:
        raise HistoryError(
            f"the history {name!r} is of version {version}, and this version of "
            f"cmr-monitor-callbacks knows versions up to {VERSION}: update it to read the history"
        )
    return int(version)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; waits for another process's."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _make(connection: sqlite3.Connection) -> None:
    with transaction(connection):  # of two processes that begin at once one makes the tables
        if _version(connection, "") is None:
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    with transaction(connection):
        for before in range(version, VERSION):
            for statement in _MIGRATIONS[before].split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
