"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_SCALES: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_COUNTED: Final = (
    *("0..100", "code", "states", "entries", "calls", "operations", "errors", "samples"),
)
"""Units that go without saying."""


def shown(value: float | None, unit: str) -> str:
    """A number in short, with its unit; a dash where there is no data.

    >>> shown(0.0123, "s"), shown(0.75, "1"), shown(1500.0, "states"), shown(None, "s")
    ('12.3 ms', '75 %', '1,500', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if unit == "1":
        return f"{_short(value * 100)} %" if abs(value) < 10 else f"{value:,.1f}"
    if unit == "s":
        return _seconds(value)
    return _short(value) if unit in _COUNTED else f"{_short(value)} {unit}".rstrip()


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    for scale, name in _SCALES:
        if abs(value) >= scale * 0.9995:  # 0.9996 s is "1 s", not "1,000 ms"
            return f"{_short(value / scale)} {name}"
    return f"{_short(value * 1e6)} µs"


def _short(value: float) -> str:
    """Three digits, or all before the point; never with an exponent where people count."""
    if 999.5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-4:
        return f"{value:.2g}"
    return f"{value:.3g}"


def stretch_text(stretch: Mapping[str, Any]) -> str:
    """A report's ``range`` in words.

    >>> stretch_text({"windows": 0})
    'No window of training has ended in this range'
    """
    if not stretch["windows"]:
        return "No window of training has ended in this range"
    return (
        f"{stretch['windows']:,} windows, steps {stretch['first_step']} to {stretch['last_step']}, "
        f"{stretch['from']} to {stretch['to']}"
    )


def state_text(run: Mapping[str, Any]) -> str:
    """How a run stands, and how it ended where that was no good end.

    >>> state_text({"state": "ended", "outcome": "completed"}), state_text({"state": "unknown"})
    ('ended', 'state unknown')
    """
    state = run.get("state", "unknown")
    outcome = run.get("outcome")
    text = "state unknown" if state == "unknown" else str(state)
    return text if outcome in (None, "completed") else f"{text}, {outcome}"
