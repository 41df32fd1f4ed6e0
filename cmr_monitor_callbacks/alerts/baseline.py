"""The recorded run that rules compare with, read from its history before training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, Kind
from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import AlertRule
from cmr_monitor_callbacks.health.baseline import Baseline, BaselineKey
from cmr_monitor_callbacks.history import HistoryError, RunHistory, Series
from cmr_monitor_callbacks.history.columns import SeriesKey

POINTS: Final = 2000
"""Points that are kept of a series, at most about: of a longer run summaries of more windows."""


def compared(rules: Iterable[AlertRule]) -> frozenset[str]:
    """Metrics that rules compare with a recorded run."""
    return frozenset(name for r in rules if r.versus == "baseline" for name in r.metrics)


def check_baseline(path: str | None, rules: Iterable[AlertRule]) -> None:
    """Whether there is a run to compare with where a rule wants one.

    Raises:
        ConfigError: a rule compares with a recorded run, and none is named.
    """
    asking = [rule.name for rule in rules if rule.versus == "baseline"]
    if asking and path is None:
        raise ConfigError(
            f"alerts.baseline must name a recorded run, its log folder or its history file, for "
            f"alerts.rules.{asking[0]}.compare.vs is 'baseline'; got null"
        )


def read_baseline(path: str | None, rules: Sequence[AlertRule]) -> Baseline:
    """What rules need of a recorded run; without a path, or a rule that wants it, it is empty.

    Args:
        path: of the run's log folder or its history file.
        rules: the rules.

    Raises:
        ConfigError: there is no such run, its history cannot be read, or holds no window of
            training; or none is named, and a rule wants one.

    >>> read_baseline(None, ()).series
    {}
    """
    check_baseline(path, rules)
    if path is None:
        return Baseline()
    try:
        with RunHistory(Path(path)) as history:
            if history.last("train") is None:
                raise HistoryError("it holds no window of training")
            return _read(history, compared(rules))
    except (HistoryError, OSError) as error:
        raise ConfigError(
            f"alerts.baseline {path!r}: {error}; it must be the log folder of a recorded run, or "
            "its history file"
        ) from None


def not_recorded(rules: Iterable[AlertRule], baseline: Baseline) -> tuple[str, ...]:
    """Rules that compare with a recorded run which has none of their metrics."""
    there = {key[0] for key in baseline.series}
    asking = (rule for rule in rules if rule.versus == "baseline")
    return tuple(rule.name for rule in asking if there.isdisjoint(rule.metrics))


def _read(history: RunHistory, names: frozenset[str]) -> Baseline:
    keys = [key for key in history.list_series("train") if key.name in names]
    series: dict[BaselineKey, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
    per_step = set()
    for key, one in history.many(keys, max_points=POINTS).items():
        over_run, over_window = _keys(key)
        given = ~np.isnan(one.last)
        steps = one.step[given]
        series[over_run] = steps, one.last[given]
        if BY_NAME[key.name].kind is Kind.COUNTER:
            series[over_window] = steps, _per_step(one)[given]
            per_step.add(over_window)
        else:
            series[over_window] = steps, one.value[given]
    return Baseline(series, frozenset(per_step), bool(history.ranks()), str(history.path))


def _keys(key: SeriesKey) -> tuple[BaselineKey, BaselineKey]:
    return (key.name, key.layer, key.rank, "run"), (key.name, key.layer, key.rank, "window")


def _per_step(series: Series) -> NDArray[np.float64]:
    """What each point of a counter added, for each step since the one before with data."""
    given = ~np.isnan(series.last)
    steps = series.step[given]
    before = np.concatenate((np.full(1, -1), steps))[:-1]
    out = np.full(len(series), np.nan)
    out[given] = series.added[given] / np.maximum(steps - before, 1)
    return out
