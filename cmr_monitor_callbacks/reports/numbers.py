"""Numbers as people read them."""

from __future__ import annotations

import math


def shown(value: float | None, unit: str) -> str:
    """A number in short, with its unit; a dash where there is no data.

    >>> shown(0.0123, "s"), shown(0.75, "1"), shown(1500.0, "states"), shown(None, "s")
    ('12.3 ms', '75 %', '1,500', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if unit == "1":
        return f"{value * 100:.3g} %" if abs(value) < 10 else f"{value:,.1f}"
    if unit == "s":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value * 1e6:.3g} µs"
    whole = float(value).is_integer() or abs(value) >= 1000
    text = f"{value:,.0f}" if whole else f"{value:.3g}"
    return text if unit in _COUNTED else f"{text} {unit}"


_COUNTED = ("0..100", "code", "states", "entries", "calls", "operations", "errors", "samples")
