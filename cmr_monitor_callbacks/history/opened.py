"""A history that is open for reading: its file, its sessions, its span of time."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cmr_monitor_callbacks.history.files import find_store
from cmr_monitor_callbacks.history.ranges import Range, seconds_of, two_times
from cmr_monitor_callbacks.history.schema import HistoryError, open_to_read, unreadable
from cmr_monitor_callbacks.history.sessions import is_alive
from cmr_monitor_callbacks.history.store import HistoryStore

T = TypeVar("T")
Self = TypeVar("Self", bound="OpenHistory")


class OpenHistory:
    """A store, or one session of it, that is read.

    Args:
        path: of the store, the folder that it lies in, or one above it (its newest run); or a
            store that is open.
        session: number of the only session that is read; None: all of them, as one run.

    Raises:
        HistoryError: there is none, or it cannot be read; the message says what to do.

    >>> from cmr_monitor_callbacks.history import RunInfo
    >>> from cmr_monitor_callbacks.config.history import HistoryConfig
    >>> OpenHistory(HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0)).last() is None
    True
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

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise unreadable(self.path or Path(":memory:"), error) from None

    @contextmanager
    def decoding(self) -> Iterator[None]:
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
        with self.decoding():
            return [_session(row) for row in rows]

    def bounds(self, time_range: Range, stage: str = "train") -> tuple[float, float]:
        """From when until when a range is, in seconds since the Unix epoch."""
        if time_range is None:
            return -math.inf, math.inf
        if isinstance(time_range, tuple):
            return two_times(time_range)
        seconds = seconds_of(time_range)
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

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the newest session, secrets masked."""
        sessions = self.sessions()
        found: dict[str, Any] = sessions[-1]["config"] if sessions else {}
        return found


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


def _state(ended: float | None, host: str, pid: int) -> str:
    if ended is not None:
        return "ended"
    if host != socket.gethostname():
        return "unknown"
    return "running" if is_alive(pid) else "died"
