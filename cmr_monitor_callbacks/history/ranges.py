"""Ranges of time, as a user gives them."""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np

from cmr_monitor_callbacks.config.spans import parse_duration

Range = str | float | tuple[float, float] | None
"""``"1h"`` or seconds before the last window; or two times, seconds since the Unix epoch."""


def two_times(given: tuple[float, ...]) -> tuple[float, float]:
    """The two times of a range.

    Raises:
        ValueError: they are none, or not in order.

    >>> two_times((1, 2))
    (1.0, 2.0)
    """
    if len(given) == 2 and all(_is_number(time) for time in given):
        low, high = (float(time) for time in given)
        if low <= high:
            return low, high
    raise ValueError(
        f"time_range must be two times in seconds since the Unix epoch, the earlier first, "
        f"got {given!r}"
    )


def seconds_of(given: object) -> float:
    """The seconds of a range that ends with the newest window.

    Raises:
        ValueError: it is no length of time.

    >>> seconds_of("30m")
    1800.0
    """
    if isinstance(given, str):
        try:
            return parse_duration(given)
        except ValueError:
            pass  # one message for all that is none
    elif _is_number(given) and 0 <= float(given) < math.inf:
        return float(given)
    raise ValueError(
        "time_range must be a duration such as '1h', '30m' or '90s', or seconds, 0 or more, "
        f"got {given!r}"
    )


def _is_number(given: object) -> TypeGuard[float]:
    if isinstance(given, bool) or not isinstance(given, (int, float, np.number)):
        return False
    return not math.isnan(float(given))
