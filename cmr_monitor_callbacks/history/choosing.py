"""Which windows and summaries of a store to read, in which order."""

from __future__ import annotations

from typing import Any

from cmr_monitor_callbacks.config.history import BLOCK
from cmr_monitor_callbacks.history.stretches import (
    BLOCK_ROW,
    WINDOW_ROW,
    Block,
    Rows,
    Stretch,
    grouped,
    tier_for,
)


def choose(
    rows: Rows,
    stage: str,
    session: int | None,
    bounds: tuple[float, float],
    max_points: int | None,
) -> list[Stretch]:
    """What to read, the oldest first; resumed sessions hide what they did again.

    Args:
        rows: runs a query.
        stage: of the windows.
        session: the only one; None: all, as one run.
        bounds: from when until when, in seconds since the Unix epoch.
        max_points: at most about so many points; None: the finest that there are.
    """
    of = "" if session is None else f" AND session = {session:d}"
    blocks: dict[int, list[tuple[Any, ...]]] = {}
    for row in rows(
        f"SELECT {BLOCK_ROW} FROM blocks WHERE stage = ?{of} AND last_time >= ? "
        "AND first_time <= ? ORDER BY first_window",
        (stage, *bounds),
    ):
        blocks.setdefault(row[0], []).append(row)
    plain = rows(
        f"SELECT {WINDOW_ROW} FROM windows WHERE stage = ?{of} AND time >= ? AND time <= ? "
        "ORDER BY id",
        (stage, *bounds),
    )
    tier = tier_for(len(blocks) * BLOCK, len(plain), max_points)
    found: list[tuple[int, Stretch]] = list(grouped(plain, rows, tier))
    for first, of_first in blocks.items():
        by_tier = {row[1]: row for row in of_first}
        best = min((t for t in by_tier if t >= tier), default=max(by_tier))
        found.append((first, Block(by_tier[best], rows)))
    begins = _begins(rows, stage, session)
    ordered = [stretch for _, stretch in sorted(found, key=lambda item: item[0])]
    for stretch in ordered:
        later = [step for number, step in begins.items() if number > stretch.session]
        stretch.limit(min(later, default=None), bounds)
    return ordered


def _begins(rows: Rows, stage: str, session: int | None) -> dict[int, int]:
    """First step of each session that has windows."""
    of = "" if session is None else f" AND session = {session:d}"
    found = rows(
        "SELECT session, min(step) FROM ("
        f"SELECT session, min(step) AS step FROM windows WHERE stage = ?{of} GROUP BY session "
        "UNION ALL "
        f"SELECT session, min(first_step) FROM blocks WHERE stage = ?{of} GROUP BY session"
        ") GROUP BY session",
        (stage, stage),
    )
    return {number: int(step) for number, step in found}
