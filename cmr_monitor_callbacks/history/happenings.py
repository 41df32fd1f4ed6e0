"""What happens in a run, as rows of the store: alerts, changes of health, errors, notes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Transition
from cmr_monitor_callbacks.history.columns import layer_text

_ERRORS_KEPT: Final = 10_000
_KINDS_KEPT: Final = 1_000
_DIAGNOSTICS_KEPT: Final = 20
_DIAGNOSTICS_LARGEST: Final = 2**20
"""Characters: a model of a thousand layers with hooks on each has as many."""
_FINDINGS_KEPT: Final = 500
Change = tuple[str, str, str, int, float]
"""Of a component's health: its name ('' the system), status before, after, step, time."""


def as_text(found: Mapping[str, Any]) -> str:
    """Diagnostics as JSON; of what is too large for every run's file the findings alone.

    >>> as_text({"status": "healthy", "findings": [], "hook_analysis": {}})
    '{"status": "healthy", "findings": [], "hook_analysis": {}}'
    """
    text = json.dumps(found, allow_nan=False)
    if len(text) <= _DIAGNOSTICS_LARGEST:
        return text
    least = {name: found[name] for name in ("step", "time", "status")}
    worst, unknown = found["findings"][:_FINDINGS_KEPT], found["not_available"][:_FINDINGS_KEPT]
    why = "what was looked at, and all but the worst findings: they are too many for the history"
    return json.dumps({**least, "findings": worst, "not_available": [*unknown, why]})


class Happenings:
    """Writes them; who calls it has begun a transaction.

    Args:
        connection: to the store.
        session: number of the session that they belong to.

    >>> from cmr_monitor_callbacks.history.schema import open_to_write
    >>> connection = open_to_write(None)
    >>> Happenings(connection, session=1).mark("warm-up over", step=5, time=1.0)
    >>> connection.execute("SELECT step, label FROM marks").fetchall()
    [(5, 'warm-up over')]
    """

    def __init__(self, connection: sqlite3.Connection, session: int) -> None:
        self._connection = connection
        self._session = session
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._open = 0

    def forget(self) -> None:
        """What a rolled back transaction had added is not there."""
        self._kinds.clear()

    def alerts(self, transitions: Sequence[Transition], changes: Sequence[Change]) -> None:
        """Keep what became of alerts and health."""
        self._connection.executemany(
            "INSERT INTO transitions (session, step, time, rule, metric, layer, rank, component, "
            "name, before, after, severity, value, threshold, message) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self._session,
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
        self._connection.executemany(
            "INSERT INTO health_changes (session, component, before, after, step, time) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(self._session, *change) for change in changes],
        )

    def diagnostics(self, found: Mapping[str, Any], text: str) -> None:
        """Keep what the diagnostics found, as JSON; so many of the newest stay."""
        self._connection.execute(
            "INSERT INTO diagnostics (session, step, time, status, found) VALUES (?, ?, ?, ?, ?)",
            (self._session, found["step"], found["time"], found["status"], text),
        )
        last = "SELECT max(id) FROM diagnostics"
        self._connection.execute(
            f"DELETE FROM diagnostics WHERE id <= ({last}) - {_DIAGNOSTICS_KEPT}"
        )

    def keep_newest(self, most: int) -> None:
        """Drop what is older, but for the last word on each alert: it may still be open."""
        for table in ("health_changes", "marks", "errors"):
            last = f"SELECT max(id) FROM {table}"
            self._connection.execute(f"DELETE FROM {table} WHERE id <= ({last}) - ?", (most,))
        (count,) = self._connection.execute("SELECT count(*) FROM transitions").fetchone()
        if count > most + self._open:
            newest = "SELECT max(id) FROM transitions GROUP BY rule, metric, layer, rank"
            self._connection.execute(
                "DELETE FROM transitions WHERE id <= (SELECT max(id) FROM transitions) - ? "
                f"AND id NOT IN ({newest})",
                (most,),
            )
            left = self._connection.execute("SELECT count(*) FROM transitions").fetchone()
            self._open = max(0, left[0] - most)

    def mark(self, label: str, step: int, time: float) -> None:
        """Keep a note of the user's, at a step."""
        self._connection.execute(
            "INSERT INTO marks (session, step, time, label) VALUES (?, ?, ?, ?)",
            (self._session, step, time, label),
        )

    def errors(self, records: Iterable[ErrorRecord]) -> None:
        """Keep errors; the traceback once for each kind."""
        for record in records:
            self._error(record)
        last = "SELECT max(id) FROM errors"
        self._connection.execute(f"DELETE FROM errors WHERE id <= ({last}) - {_ERRORS_KEPT}")

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
            cursor = self._connection.execute(
                "INSERT INTO error_kinds (session, origin, component, layer, rank, type, message, "
                "traceback, count, first_step, last_step, first_time, last_time) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?)",
                (
                    self._session,
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
        self._connection.execute(
            "UPDATE error_kinds SET count = count + ?, last_step = ?, last_time = ? WHERE id = ?",
            (record.count, record.step, record.time, kind),
        )
        self._connection.execute(
            "INSERT INTO errors (kind, step, time, count, message) VALUES (?, ?, ?, ?, ?)",
            (kind, record.step, record.time, record.count, record.message),
        )
