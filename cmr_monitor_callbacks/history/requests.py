"""What another process asks of a run: it is written into the store, and taken at a window."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmr_monitor_callbacks.history.schema import BUSY, HistoryError, open_to_read, unreadable


def ask(path: Path, what: Mapping[str, Any], now: float) -> int:
    """Ask something of the run that writes a store.

    Args:
        path: of the store.
        what: ``kind`` and its arguments, as plain data.
        now: seconds since the Unix epoch.

    Returns:
        number of the request.

    Raises:
        HistoryError: there is no store, or it cannot be written.
    """
    open_to_read(path).close()  # is it one?
    try:
        connection = sqlite3.connect(path, BUSY)
        with connection:
            cursor = connection.execute(
                "INSERT INTO requests (time, what) VALUES (?, ?)", (now, json.dumps(dict(what)))
            )
        connection.close()
    except sqlite3.Error as error:
        raise unreadable(path, error) from None
    return int(cursor.lastrowid or 0)


def is_taken(path: Path, request: int, seconds: float) -> bool:
    """Whether the run takes a request within so many seconds: at the end of its next window."""
    end = time.monotonic() + seconds
    while True:
        connection = open_to_read(path)
        try:
            row = connection.execute(
                "SELECT taken FROM requests WHERE id = ?", (request,)
            ).fetchone()
        except sqlite3.Error as error:
            raise unreadable(path, error) from None
        finally:
            connection.close()
        if row is None:
            raise HistoryError(f"request {request} is gone from {str(path)!r}")
        if row[0] is not None:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
