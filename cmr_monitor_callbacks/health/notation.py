"""Series as text, in the notation of promtool's rule tests."""

from __future__ import annotations

import math
import re
from typing import Final

_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?Inf|NaN"
_EXPANDING: Final = re.compile(rf"({_NUMBER})(?:([-+])({_NUMBER}))?(?:x(\d+))?")
_GAPS: Final = re.compile(r"_(?:x(\d+))?")


def expand(text: str) -> list[float | None]:
    """The values of a series; None is no sample.

    ``a+bxn`` is ``a, a+b, … a+n·b`` (n + 1 values), ``axn`` is n + 1 times ``a``, ``_`` and
    ``stale`` are no sample, ``_xn`` is n times none.

    Raises:
        ValueError: a part is none of these; the message says which.

    >>> expand("1+2x3 _x2 4 0.5x1")
    [1.0, 3.0, 5.0, 7.0, None, None, 4.0, 0.5, 0.5]
    """
    out: list[float | None] = []
    for part in text.split():
        gaps = _GAPS.fullmatch(part)
        if part == "stale":
            out.append(None)
        elif gaps is not None:
            out.extend([None] * int(gaps[1] or 1))
        else:
            out.extend(_expanded(part))
    return out


def _expanded(part: str) -> list[float | None]:
    found = _EXPANDING.fullmatch(part)
    if found is None or (found[2] and found[4] is None):
        raise ValueError(
            f"{part!r} is no part of a series; allowed: a number, 'a+bxn', 'a-bxn', 'axn', '_', "
            "'_xn', 'stale'"
        )
    start, step = float(found[1]), float(found[3] or 0)
    if found[2] == "-":
        step = -step
    values = [start + step * i for i in range(1 + int(found[4] or 0))]
    return [None if math.isnan(value) else value for value in values]
