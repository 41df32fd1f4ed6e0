"""Packing: a stretch of windows becomes a block of columns, with its roll-ups."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.history.blocks import TIERS, last_of_each, roll_up, to_bytes
from cmr_monitor_callbacks.history.columns import Array
from cmr_monitor_callbacks.history.schema import transaction


def pack(connection: sqlite3.Connection, session: int, stage: str) -> None:
    """Pack the oldest `BLOCK` windows of a stage of a session, where there are so many."""
    rows = connection.execute(
        "SELECT id, step, time, layout, data FROM windows WHERE session = ? AND stage = ? "
        "ORDER BY id LIMIT ?",
        (session, stage, BLOCK),
    ).fetchall()
    if len(rows) < BLOCK:  # some were deleted for their age, or by another process
        return
    steps = np.array([row[1] for row in rows], dtype=np.int64)
    times = np.array([row[2] for row in rows])
    series, table = _by_series(rows, _layouts(connection, {row[3] for row in rows}))
    with transaction(connection):
        for tier in TIERS:
            block = _insert_block(connection, session, stage, (rows[0][0], tier), steps, times)
            _insert_columns(connection, block, series, table, 10**tier)
        connection.execute(
            "DELETE FROM windows WHERE session = ? AND stage = ? AND id <= ?",
            (session, stage, rows[-1][0]),
        )


def _insert_block(
    connection: sqlite3.Connection,
    session: int,
    stage: str,
    which: tuple[int, int],
    steps: NDArray[np.int64],
    times: Array,
) -> int:
    first_window, tier = which
    at = [last_of_each(column, 10**tier) for column in (steps, times)]
    cursor = connection.execute(
        "INSERT INTO blocks (first_window, tier, session, stage, rows, first_step, last_step, "
        "first_time, last_time, steps, times) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            first_window,
            tier,
            session,
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
    return int(cursor.lastrowid or 0)


def _insert_columns(
    connection: sqlite3.Connection, block: int, series: Sequence[int], table: Array, size: int
) -> None:
    if size > 1:
        table = np.concatenate(roll_up(table, size))
    connection.executemany(
        "INSERT INTO columns (series, block, data) VALUES (?, ?, ?)",
        (
            (number, block, to_bytes(values))
            for number, values in zip(series, np.ascontiguousarray(table.T), strict=True)
        ),
    )


def _layouts(connection: sqlite3.Connection, ids: Iterable[int]) -> dict[int, NDArray[np.int32]]:
    """Ids of the series of each layout, in order."""
    out = {}
    for layout in ids:
        query = "SELECT series FROM layouts WHERE id = ?"
        out[layout] = np.frombuffer(connection.execute(query, (layout,)).fetchone()[0], "<i4")
    return out


def _by_series(
    rows: Sequence[tuple[Any, ...]], layouts: Mapping[int, NDArray[np.int32]]
) -> tuple[list[int], Array]:
    """Series that have data in windows, which may be of several layouts, and a column for each."""
    series = np.unique(np.concatenate(list(layouts.values())))
    table = np.full((len(rows), len(series)), math.nan)
    for layout, ids in layouts.items():
        at = np.flatnonzero([row[3] == layout for row in rows])
        values = np.frombuffer(b"".join(row[4] for row in rows if row[3] == layout), dtype="<f8")
        table[np.ix_(at, np.searchsorted(series, ids))] = values.reshape(len(at), len(ids))
    some = ~np.isnan(table).all(axis=0)
    return series[some].tolist(), table[:, some]
