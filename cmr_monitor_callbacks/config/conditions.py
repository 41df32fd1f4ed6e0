"""Conditions as text: parsed, never run as code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final

from cmr_monitor_callbacks.catalogue import canonical, is_custom
from cmr_monitor_callbacks.errors import nearest

COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    ">": gt,
    ">=": ge,
    "<": lt,
    "<=": le,
    "==": eq,
    "!=": ne,
}
"""Conditions of a number, or of an array of them, by name."""

_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COMPARISON: Final = re.compile(rf"\s*(>=|<=|==|!=|>|<)\s*({_NUMBER})\s*")
_NAME: Final = r"(?:whole\.)?\w+|custom/[\w.\-]+"
_TERM: Final = re.compile(rf"\s*({_NAME})\s*(>=|<=|==|!=|>|<)\s*({_NUMBER})\s*")


def parse_comparison(text: str) -> tuple[str, float]:
    """A comparison with a number, such as ``"> 0.1"``: the condition's name and the number.

    Raises:
        ValueError: the text is no such comparison.

    >>> parse_comparison("> 0.1")
    ('>', 0.1)
    """
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ValueError(
            f"must be a comparison with a number, such as '> 0.1' (allowed: "
            f"{' '.join(COMPARISONS)}), got {text!r}"
        )
    return found[1], float(found[2])


@dataclass(frozen=True)
class Comparison:
    """A number by its name, beside another number."""

    name: str
    condition: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether it holds; NaN never does."""
        return value == value and bool(COMPARISONS[self.condition](value, self.limit))


Expression = tuple[tuple[Comparison, ...], ...]
"""Alternatives, of each all comparisons must hold."""


def parse_expression(text: str, also: Iterable[str] = ()) -> Expression:
    """Comparisons joined by ``and`` and ``or``; ``and`` binds first.

    Args:
        text: such as ``utilization_rate >= 0.95 or steps >= 2000``; ``whole.`` before a metric's
            name means that of the model as a whole, where others are of a layer.
        also: names beside the metrics'.

    Raises:
        ValueError: a part is no comparison, or of a number that nobody knows.

    >>> [[c.name for c in part] for part in parse_expression("score < 90 and steps > 5", ["steps"])]
    [['score', 'steps']]
    """
    return tuple(
        tuple(_term(part, set(also)) for part in re.split(r"\band\b", alternative))
        for alternative in re.split(r"\bor\b", text)
    )


def _term(text: str, also: set[str]) -> Comparison:
    found = _TERM.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text.strip()!r} is no comparison of a metric with a number, such as "
            "'utilization_rate >= 0.95'"
        )
    prefix, _, name = ("", "", found[1]) if is_custom(found[1]) else found[1].rpartition(".")
    if name not in also:
        try:
            name = canonical(name)
        except KeyError as error:
            hint = nearest(name, also)
            raise ValueError(hint if hint.startswith("did") else error.args[0]) from None
    return Comparison(f"{prefix}.{name}" if prefix else name, found[2], float(found[3]))
