"""One alert at a time, in plain Python: what the documentation says of a rule, written out."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RANK = {"warning": 1, "error": 2, "critical": 3}
COMPARE = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
UNITS = {"steps": 0, "windows": 1, "seconds": 2}
Span = tuple[float, str]
At = tuple[float, float, float]


def met(condition: str, value: float, limit: Any) -> bool:
    if condition == "outside":
        return value < limit[0] or value > limit[1]
    return bool(COMPARE[condition](value, limit))


@dataclass
class OneAlert:
    """A rule on one series."""

    condition: str
    thresholds: Mapping[str, tuple[Any, Any]]
    hold: Span
    keep: Span
    no_data: str
    no_data_for: Span
    m: int = 1
    n: int = 1
    phase: str = "inactive"
    severity: str | None = None
    since: list[float] = field(default_factory=list)
    quiet: list[float] | None = None
    gap: At | None = None
    last: At = (0.0, 0.0, 0.0)
    history: dict[str, list[bool]] = field(default_factory=dict)

    def look(self, value: float, at: At) -> tuple[str, str | None]:
        passed = [now - before for now, before in zip(at, self.last, strict=True)]
        self.last = at
        if math.isnan(value):
            self._missing(at, passed)
        else:
            self.gap = None
            self._judge(self._level(value), at)
        return self.phase, self.severity

    @property
    def _fires(self) -> bool:
        return self.phase not in ("inactive", "pending")

    def _level(self, value: float) -> str | None:
        found = None
        for severity in sorted(self.thresholds, key=RANK.__getitem__):
            fire, recover = self.thresholds[severity]
            held = self._fires and RANK[self.severity or "warning"] >= RANK[severity]
            now = met(self.condition, value, recover if held else fire)
            kept = [*self.history.get(severity, []), now][-self.n :]
            self.history[severity] = kept
            if sum(kept) >= self.m:
                found = severity
        return found

    def _judge(self, level: str | None, at: At) -> None:
        if level is None:
            self._ends(at)
            return
        if self.phase == "inactive":
            self.phase, self.since = "pending", list(at)
        self.quiet = None
        if self.phase == "pending":
            if passed(self.hold, self.since, at):
                self.phase = "firing"
        else:
            self.phase = "firing"
        self.severity = level

    def _ends(self, at: At) -> None:
        if self.phase == "pending":
            self.phase = "inactive"
        elif self._fires:
            self.quiet = self.quiet or list(at)
            self.phase = "inactive" if passed(self.keep, self.quiet, at) else "recovering"
        if self.phase == "inactive":
            self.severity = self.quiet = None

    def _missing(self, at: At, gone: list[float]) -> None:
        self.gap = self.gap or at
        long = passed(self.no_data_for, list(self.gap), at)
        if self.no_data == "ok" and long:
            self._ends(at)
            return
        # a gap is no recovery and no proof: the clocks stand still
        self.since = [a + b for a, b in zip(self.since, gone, strict=False)]
        if self.quiet is not None:
            self.quiet = [a + b for a, b in zip(self.quiet, gone, strict=True)]
        if self.no_data in ("alert", "error") and long:
            lowest = min(self.thresholds, key=RANK.__getitem__)
            if self.no_data == "error":
                self.phase, self.severity = "error", "error"
            else:
                self.phase = "nodata"
                self.severity = max(self.severity or lowest, lowest, key=RANK.__getitem__)


def passed(span: Span, since: list[float], at: At) -> bool:
    amount, unit = span
    i = UNITS[unit]
    return at[i] - since[i] >= amount - 1e-6 * (unit == "seconds")
