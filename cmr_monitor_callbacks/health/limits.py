"""What rules say, by instance, as arrays: limits, lengths of time and what to do without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.health.rules import AlertRule, Span
from cmr_monitor_callbacks.health.series import Series
from cmr_monitor_callbacks.health.states import Severity

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Places = NDArray[np.intp]
UNITS: Final = ("steps", "windows", "seconds")
_INEQUALITIES: Final = (">", ">=", "<", "<=", "nonfinite")


class Limits:
    """The rules of `Series`, by instance.

    Every inequality is judged as ``sign * value > limit``, all at once; the other conditions are
    rare and judged apart.

    Attributes:
        hold, keep, gap_for: lengths of time, with ``hold_unit`` and so on: places in `UNITS`.
        acts_without_data: where a gap has a consequence.
        gap_is_well, gap_fires, gap_is_error: which.
        mutable: where validation and the like make a window no data.
        waits: where the warm-up is waited for.
        lowest: least severity of the rule.
        error_level: severity of an alert that fires because of an error.
        several: instances that count windows: m of n.
        by_best, by_ewma: instances that are compared with their own past.
        least_is_best: whether low is good.
    """

    def __init__(self, series: Series) -> None:
        rules, self._series = series.rules, series

        def each(of: Callable[[AlertRule], Any], dtype: Any = np.float64) -> NDArray[Any]:
            return np.repeat(np.array([of(rule) for rule in rules], dtype=dtype), series.counts)

        def where(of: Callable[[AlertRule], bool]) -> Places:
            return np.flatnonzero(each(of, bool))

        self.hold, self.hold_unit = _spans(each, lambda rule: rule.hold)
        self.keep, self.keep_unit = _spans(each, lambda rule: rule.keep)
        self.gap_for, self.gap_unit = _spans(each, lambda rule: rule.no_data_for)
        self.acts_without_data: Mask = each(lambda r: r.no_data != "keep", bool)
        self.acting = np.flatnonzero(self.acts_without_data)
        self.gap_is_well: Mask = each(lambda r: r.no_data == "ok", bool)
        self.gap_fires: Mask = each(lambda r: r.no_data == "alert", bool)
        self.gap_is_error: Mask = each(lambda r: r.no_data == "error", bool)
        self.waits: Mask = each(lambda r: r.warmup, bool)
        self.lowest = each(lambda r: r.thresholds[-1].severity.rank, np.int8)
        error = Severity.ERROR.rank
        self.error_level = each(
            lambda r: error if r.no_data == "error" else r.thresholds[-1].severity.rank, np.int8
        )
        muted = [rules[r].muted(m) for r, m in zip(series.rule, series.metric, strict=True)]
        self.mutable: Mask = np.array(muted, dtype=bool)
        self.several = where(lambda r: r.m_of_n != (1, 1))
        self.m = each(lambda r: r.m_of_n[0], np.intp)[self.several]
        self.n = each(lambda r: r.m_of_n[1], np.intp)[self.several]
        self.by_best = where(lambda r: r.versus == "self.best")
        self.by_ewma = where(lambda r: r.versus == "self.ewma")
        self.as_ratio: Mask = each(lambda r: r.as_ratio, bool)
        self.least_is_best: Mask = each(lambda r: r.condition in (">", ">="), bool)
        self.frozen = where(lambda r: r.condition == "frozen")
        self.absent = where(lambda r: r.condition == "absent")
        self._equal = where(lambda r: r.condition == "==")
        self._unequal = where(lambda r: r.condition == "!=")
        self._outside = where(lambda r: r.condition == "outside")
        self.tests = [(int(i), rules[series.rule[i]]) for i in where(lambda r: r.test is not None)]
        self._sign = each(lambda r: -1.0 if r.condition in ("<", "<=") else 1.0)
        self._fire = _limits(each, "fire")
        self._recover = _limits(each, "recover")
        self._in_use = ~np.isnan(self._fire[:, 0]) | _valueless(each)
        inequality = each(lambda r: r.condition in _INEQUALITIES and r.test is None, bool)
        self._over_fire = np.where(inequality, self._over(each, self._fire[:, 0]), math.nan)
        self._over_recover = np.where(inequality, self._over(each, self._recover[:, 0]), math.nan)

    def _over(self, each: Any, limit: Array) -> Array:
        """What ``sign * value`` must be over."""
        nonfinite = each(lambda r: r.condition == "nonfinite", bool)
        limit = np.where(nonfinite & self._in_use, 0.0, limit * self._sign)
        inclusive = each(lambda r: r.condition in (">=", "<="), bool)
        over: Array = np.where(inclusive, np.nextafter(limit, -math.inf), limit)
        return over

    def met(self, values: Array, before: Array, holds: NDArray[np.int8]) -> Mask:
        """Which severities are met, shape ``(3, instances)``; NaN meets none.

        Args:
            values: by instance.
            before: the last values.
            holds: severity at which an alert fires; those up to it hold until they recover.
        """
        signed = values * self._sign
        met = np.empty((3, len(values)), dtype=bool)
        firing = bool(holds.any())
        for i in range(3):
            limit = self._over_fire[i]
            if firing:
                limit = np.where(holds > i, self._over_recover[i], limit)
            np.greater(signed, limit, out=met[i])
        for at, judge in (
            (self._equal, _equals),
            (self._unequal, _differs),
            (self._outside, _is_outside),
        ):
            if len(at):
                held = (holds[at] > np.arange(3)[:, None])[:, None]
                limits = np.where(held, self._recover[:, :, at], self._fire[:, :, at])
                met[:, at] = judge(values[at], limits) & self._in_use[:, at]
        if len(self.frozen):
            same = values[self.frozen] == before[self.frozen]
            met[:, self.frozen] = same & self._in_use[:, self.frozen]
        if len(self.absent):
            met[:, self.absent] = np.isnan(values[self.absent]) & self._in_use[:, self.absent]
        return met


def _spans(each: Any, of: Callable[[AlertRule], Span]) -> tuple[Array, Places]:
    amounts = each(lambda rule: of(rule)[0])
    return amounts, each(lambda rule: UNITS.index(of(rule)[1]), np.intp)


def _limits(each: Any, name: str) -> Array:
    """Shape ``(3, 2, instances)``: by severity, low and high; NaN where a severity is not used."""

    def limit(rule: AlertRule, severity: Severity, high: bool) -> float:
        for threshold in rule.thresholds:
            if threshold.severity is severity:
                value = getattr(threshold, name)
                return float(value[high]) if isinstance(value, tuple) else float(value)
        return math.nan

    def row(severity: Severity, high: bool) -> Array:
        array: Array = each(lambda rule: limit(rule, severity, high))
        return array

    return np.stack([[row(s, False), row(s, True)] for s in Severity])


def _valueless(each: Any) -> Mask:
    """Shape ``(3, instances)``: severities in use of conditions that need no value."""

    def used(rule: AlertRule, severity: Severity) -> bool:
        named: Iterable[Severity] = (t.severity for t in rule.thresholds)
        return rule.condition in ("nonfinite", "frozen", "absent") and severity in named

    def row(severity: Severity) -> Mask:
        array: Mask = each(lambda rule: used(rule, severity), bool)
        return array

    return np.stack([row(severity) for severity in Severity])


def _equals(value: Array, limits: Array) -> Mask:
    """NaN equals nothing."""
    met: Mask = value == limits[:, 0]
    return met


def _differs(value: Array, limits: Array) -> Mask:
    met: Mask = (value != limits[:, 0]) & ~np.isnan(value)
    return met


def _is_outside(value: Array, limits: Array) -> Mask:
    met: Mask = (value < limits[:, 0]) | (value > limits[:, 1])
    return met
