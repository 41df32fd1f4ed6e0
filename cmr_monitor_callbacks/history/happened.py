"""What happened in a run, read back: alerts, changes of health, notes, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmr_monitor_callbacks.history.columns import layer_from
from cmr_monitor_callbacks.history.opened import OpenHistory
from cmr_monitor_callbacks.history.ranges import Range
from cmr_monitor_callbacks.history.schema import HistoryError


class Happened(OpenHistory):
    """The part of `RunHistory` that is no numbers.

    >>> from cmr_monitor_callbacks.history import HistoryStore, RunInfo
    >>> from cmr_monitor_callbacks.config.history import HistoryConfig
    >>> store = HistoryStore(None, HistoryConfig(), RunInfo(), now=0.0)
    >>> store.mark("warm-up over", step=5, time=1.0)
    >>> Happened(store).marks()
    [{'step': 5, 'time': 1.0, 'label': 'warm-up over'}]
    """

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

    def diagnostics(self, time_range: Range = None) -> list[dict[str, Any]]:
        """What the diagnostics found, each time that they ran, the oldest first.

        Returns:
            what `run_diagnostics` gave; of one too large for the file its findings alone.
        """
        if not self._rows("SELECT name FROM sqlite_master WHERE name = 'diagnostics'"):
            return []  # a store of version 1 that nobody wrote since
        with self.decoding():
            rows = self._events("diagnostics", ("found",), time_range)
            return [json.loads(row["found"]) for row in rows]

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
            ``last_time``, and ``over_time``: pairs of step and count, of the newest. A rank's file
            that cannot be read is an error of its own.
        """
        low, high = self.bounds(time_range)
        found = self._error_kinds(low, high)
        if self.path is not None:
            for other in sorted(self.path.parent.glob(f"{self.path.stem}.rank_*.sqlite")):
                found += _errors_of(other, low, high)
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


def _errors_of(path: Path, low: float, high: float) -> list[dict[str, Any]]:
    """Errors that another rank kept."""
    try:
        with Happened(path) as store:
            return store._error_kinds(low, high)
    except HistoryError as error:
        rank, time = path.stem.rpartition("_")[2], path.stat().st_mtime
        return [
            {
                "origin": "monitor",
                "component": "monitor",
                "layer": None,
                "rank": int(rank) if rank.isdigit() else 0,
                "type": "HistoryError",
                "message": str(error),
                "traceback": "",
                "count": 1,
                "first_step": -1,
                "last_step": -1,
                "first_time": time,
                "last_time": time,
                "over_time": [],
            }
        ]
