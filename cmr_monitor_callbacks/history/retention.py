"""What is deleted of a store, and when: by number, by age, by size."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cmr_monitor_callbacks.config.history import BLOCK, HistoryConfig
from cmr_monitor_callbacks.history.blocks import TIERS
from cmr_monitor_callbacks.history.schema import (
    BUSY,
    leave_one_file,
    open_to_read,
    open_to_write,
    transaction,
    unreadable,
)

_ALERTS_KEPT: Final = 100_000
_MIB: Final = 2**20


def retain(connection: sqlite3.Connection, config: HistoryConfig, now: float) -> int:
    """Delete what is over the limits of number, age and size.

    Args:
        connection: to the store.
        config: the limits.
        now: seconds since the Unix epoch.

    Returns:
        number of blocks and windows deleted.
    """
    deleted = _delete_all(connection, config, now)
    if deleted:
        _give_back(connection)
    return deleted


def _delete_all(connection: sqlite3.Connection, config: HistoryConfig, now: float) -> int:
    deleted = _delete_windows(connection, config, now)
    deleted += _delete(connection, _too_old(connection, config, now))
    deleted += _delete(connection, _too_many(connection, config))
    last = "SELECT max(id) FROM transitions"
    connection.execute(f"DELETE FROM transitions WHERE id <= ({last}) - {_ALERTS_KEPT}")
    limit = config.max_size_mb
    while limit is not None and size_of(connection) > limit * _MIB:
        gone = _delete_oldest(connection)
        if not gone:
            break
        deleted += gone
    return deleted


@dataclass(frozen=True)
class Contents:
    """What a store has, of all stages together.

    Attributes:
        exact: windows that are kept exactly.
        summarised: windows of which a summary alone is kept.
        size: bytes in use.
    """

    exact: int
    summarised: int
    size: int


def prune(
    path: Path, config: HistoryConfig, now: float, *, dry: bool = False
) -> tuple[Contents, Contents]:
    """Apply limits to a store by hand, and give the room back; also while it is being written.

    Args:
        path: of the store.
        config: the limits.
        now: seconds since the Unix epoch.
        dry: only find out what would be deleted.

    Returns:
        what is in it before and after.

    Raises:
        HistoryError: it is no store, of a newer version, damaged, or cannot be written.
    """
    try:
        with closing(open_to_read(path)) as connection:  # no store is made of an empty file
            _check(connection)
        return _try(path, config, now) if dry else _apply(path, config, now)
    except sqlite3.Error as error:
        raise unreadable(path, error) from None


def _apply(path: Path, config: HistoryConfig, now: float) -> tuple[Contents, Contents]:
    connection = open_to_write(path)
    try:
        before = contents_of(connection)
        retain(connection, config, now)
        _give_back(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        after = contents_of(connection)
        leave_one_file(connection)
        return before, after
    finally:
        connection.close()


def _try(path: Path, config: HistoryConfig, now: float) -> tuple[Contents, Contents]:
    """Delete it all, look, and take it back; the file itself is not touched."""
    connection = sqlite3.connect(path, BUSY, isolation_level=None)
    try:
        connection.execute("PRAGMA cache_spill = OFF")
        connection.execute("BEGIN IMMEDIATE")
        before = contents_of(connection)
        _delete_all(connection, config, now)
        after = contents_of(connection)
        connection.execute("ROLLBACK")
        return before, after
    finally:
        connection.close()


def _check(connection: sqlite3.Connection) -> None:
    """Delete nothing of a damaged store: what is left of it may be saved yet."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError("it is damaged")


def contents_of(connection: sqlite3.Connection) -> Contents:
    """What a store has now."""
    (plain,) = connection.execute("SELECT count(*) FROM windows").fetchone()
    packed: dict[tuple[str, int], bool] = {}
    for stage, first, tier in connection.execute("SELECT stage, first_window, tier FROM blocks"):
        packed[stage, first] = packed.get((stage, first), False) or tier == 0
    exact = sum(packed.values()) * BLOCK
    return Contents(plain + exact, len(packed) * BLOCK - exact, size_of(connection))


def _give_back(connection: sqlite3.Connection) -> None:
    """Free pages become the file system's again; `execute` would stop after the first of them."""
    connection.executescript("PRAGMA incremental_vacuum")


def size_of(connection: sqlite3.Connection) -> int:
    """Bytes in use."""
    pages, free, page = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page)


def _delete_windows(connection: sqlite3.Connection, config: HistoryConfig, now: float) -> int:
    """Windows that are not packed and too old; each stage's newest stays."""
    if config.max_age is None:
        return 0
    cursor = connection.execute(
        "DELETE FROM windows WHERE time < ? AND id NOT IN "
        "(SELECT max(id) FROM windows GROUP BY stage)",
        (now - config.max_age,),
    )
    return cursor.rowcount


def _delete_oldest(connection: sqlite3.Connection) -> int:
    """The oldest exact windows, else the oldest and finest of the summaries.

    Sessions before the newest end with windows that nobody packs any more: these count as exact.
    """
    block = connection.execute(
        "SELECT tier, first_window, id FROM blocks ORDER BY tier, first_window LIMIT 1"
    ).fetchone()
    window = connection.execute(
        "SELECT id, session FROM windows WHERE session < (SELECT max(id) FROM sessions) "
        "ORDER BY id LIMIT 1"
    ).fetchone()
    if window is not None and (block is None or (0, window[0]) < (block[0], block[1])):
        cursor = connection.execute(
            "DELETE FROM windows WHERE id IN "
            "(SELECT id FROM windows WHERE session = ? ORDER BY id LIMIT ?)",
            (window[1], BLOCK),
        )
        return cursor.rowcount
    return 0 if block is None else _delete(connection, [block[2]])


def _too_old(connection: sqlite3.Connection, config: HistoryConfig, now: float) -> list[int]:
    if config.max_age is None:
        return []
    before = now - config.max_age
    rows = connection.execute("SELECT id FROM blocks WHERE last_time < ?", (before,))
    return [row[0] for row in rows]


def _too_many(connection: sqlite3.Connection, config: HistoryConfig) -> list[int]:
    """Blocks of a tier beyond its number of windows; the last tier has no limit."""
    gone = []
    kept: dict[tuple[str, int], int] = {}
    rows = connection.execute(
        "SELECT id, stage, tier FROM blocks WHERE tier < ? ORDER BY first_window DESC",
        (TIERS[-1],),
    )
    for id_, stage, tier in rows:
        kept[stage, tier] = kept.get((stage, tier), 0) + BLOCK
        if kept[stage, tier] > config.raw_windows * 10**tier:
            gone.append(id_)
    return gone


def _delete(connection: sqlite3.Connection, blocks: Sequence[int]) -> int:
    if blocks:
        with nullcontext() if connection.in_transaction else transaction(connection):
            ids = [(block,) for block in blocks]
            connection.executemany("DELETE FROM columns WHERE block = ?", ids)
            connection.executemany("DELETE FROM blocks WHERE id = ?", ids)
    return len(blocks)
