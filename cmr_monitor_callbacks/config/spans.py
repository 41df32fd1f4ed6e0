"""Lengths of time as people write them: steps, windows or a duration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator

_SPAN: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(steps?|windows?|ms|s|m|h|d)?\s*")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_span(text: str | float | int) -> tuple[float, str]:
    """A length of time: an amount, and ``steps``, ``windows`` or ``seconds``.

    Raises:
        ValueError: the text says none of these.

    >>> parse_span("50 steps"), parse_span("2 windows"), parse_span("5m"), parse_span(0)
    ((50.0, 'steps'), (2.0, 'windows'), (300.0, 'seconds'), (0.0, 'seconds'))
    """
    found = _SPAN.fullmatch(str(text))
    if found is None:
        raise ValueError(
            f"must be like '50 steps', '3 windows', '30s', '5m' or seconds, got {text!r}"
        )
    amount, unit = float(found[1]), found[2] or "s"
    if unit.startswith(("step", "window")):
        return amount, unit.rstrip("s") + "s"
    return amount * _SECONDS[unit], "seconds"


def parse_duration(text: str | float | int) -> float:
    """Seconds.

    Raises:
        ValueError: the text is no duration, or counts steps or windows.

    >>> parse_duration("30m"), parse_duration(2.5)
    (1800.0, 2.5)
    """
    found = _SPAN.fullmatch(str(text))
    if found is None or (found[2] or "s") not in _SECONDS:
        raise ValueError(f"must be a duration like '30s', '10m', '12h' or '2d', got {text!r}")
    return parse_span(text)[0]


def _check_span(value: str | float) -> str | float:
    parse_span(value)
    return value


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a length of time, got {value!r}")
    return value


Span = Annotated[str | float, BeforeValidator(_no_bool), AfterValidator(_check_span)]
"""A field that holds steps, windows or a duration."""
Duration = Annotated[
    float, BeforeValidator(_no_bool), BeforeValidator(lambda value: parse_duration(value))
]
"""A field that holds seconds, none or more; ``'10m'`` is allowed."""


def _some(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError(f"must be longer than 0 s, got {seconds:g}")
    return seconds


PositiveDuration = Annotated[Duration, AfterValidator(_some)]
"""A field that holds seconds, more than none."""
