"""The numbers of a recorded run, as plain data: what rules with ``vs: baseline`` compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cmr_monitor_callbacks.health.series import Series
from cmr_monitor_callbacks.layers import LayerId

Array = NDArray[np.float64]
Places = NDArray[np.intp]
AROUND: Final = 5
"""Windows of the baseline whose median is taken."""
BaselineKey = tuple[str, LayerId | None, int | None, str]
"""Canonical name of a metric, layer, rank, ``window`` or ``run``."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """A recorded run.

    Args:
        series: by key: the last steps of the windows with data, rising, and their values; of a
            counter over the window what each window added for each of its steps.
        per_step: keys whose values are for each step.
        ranks: whether it has numbers of single ranks; where it has none, what is asked of rank 0
            is answered with the whole's.
        name: of the run, for messages.

    >>> one = Baseline({("score", None, None, "window"): (np.arange(9), np.arange(9.0) ** 2)})
    >>> [one.at(("score", None, None, "window"), step) for step in (0, 3, 8, 99)]
    [0.0, 9.0, 64.0, 36.0]
    """

    series: Mapping[BaselineKey, tuple[NDArray[np.int64], Array]] = field(default_factory=dict)
    per_step: frozenset[BaselineKey] = frozenset()
    ranks: bool = False
    name: str = ""

    def at(self, key: BaselineKey, step: int) -> float:
        """The run's value around a step; NaN where it has none.

        It is the median of five windows with data: the newest that had ended by ``step`` (the
        first, where none had), two before it and two after it. Near either end it is as many on
        each side as there are, so that what rises or falls is no less beside itself; beyond the
        end of the run it is the median of its last five.
        """
        found = self.series.get(self.known(key))
        if found is None or not len(found[0]):
            return math.nan
        steps, values = _smooth(*found)
        return float(values[max(0, int(steps.searchsorted(step, "right")) - 1)])

    def known(self, key: BaselineKey) -> BaselineKey:
        """The key under which the run has a series."""
        if key not in self.series and key[2] == 0 and not self.ranks:
            return (key[0], key[1], None, key[3])
        return key


def around(values: Array) -> Array:
    """The median of five values, each with the two before and after it; fewer near the ends.

    >>> around(np.array([1.0, 2.0, 90.0, 4.0, 5.0, 6.0, 7.0])).tolist()
    [1.0, 2.0, 4.0, 5.0, 6.0, 6.0, 7.0]
    """
    out: Array = values.copy()
    for half in range(1, AROUND // 2 + 1):
        width = 2 * half + 1
        if len(values) >= width:
            out[half : len(values) - half] = np.median(sliding_window_view(values, width), axis=1)
    return out


def _smooth(steps: NDArray[np.int64], values: Array) -> tuple[NDArray[np.int64], Array]:
    """Medians by step, and one more for what comes after the run's end."""
    after = np.median(values[-AROUND:])
    return np.append(steps, steps[-1] + 1), np.append(around(values), after)


class BesideRun:
    """The recorded run's side of the instances of `Series` that are compared with it.

    Args:
        series: the instances.
        baseline: the run; None: there is none, and its side is no data.

    Attributes:
        at: the instances.
    """

    def __init__(self, series: Series, baseline: Baseline | None) -> None:
        rules = [series.rules[i] for i in series.rule]
        asked = [rule.versus == "baseline" for rule in rules]
        self.at: Places = np.flatnonzero(np.array(asked, dtype=bool))
        run = baseline or Baseline()
        keys = [
            run.known((series.metric[i], series.layer[i], series.rank[i], rules[i].over))
            for i in self.at
        ]
        self._keys = keys
        self._found = {key: run.series[key] for key in keys if key in run.series}
        places = {key: n for n, key in enumerate(self._found)}
        self._places = np.array([places.get(key, -1) for key in keys], dtype=np.intp)
        self._per_step = np.array([key in run.per_step for key in keys], dtype=bool)
        self._steps, self._table = _table(list(self._found.values()))

    def __len__(self) -> int:
        return len(self.at)

    def others(self, step: int, steps: float) -> Array:
        """The run's values beside a window that ends at ``step`` and is ``steps`` long."""
        row = max(0, int(self._steps.searchsorted(step, "right")) - 1)
        out: Array = self._table[row, self._places]
        out[self._per_step] *= steps
        return out

    def unknown(self, raw: Array) -> list[BaselineKey]:
        """Series that have data now, and that the run never had."""
        lost = (self._places < 0) & ~np.isnan(raw[self.at])
        return [self._keys[n] for n in np.flatnonzero(lost).tolist()]


def _table(found: list[tuple[NDArray[np.int64], Array]]) -> tuple[NDArray[np.int64], Array]:
    """All steps, and the values that hold at each, shape ``(steps, series + 1)``; the last is NaN.

    Series lack data at some steps; there the last one's holds, and before the first the first.
    """
    smooth = [_smooth(*one) if len(one[0]) else one for one in found]
    steps = np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *(one[0] for one in smooth)]))
    table = np.full((len(steps), len(found) + 1), math.nan)
    for n, (own, values) in enumerate(smooth):
        if len(own):
            table[:, n] = values[np.maximum(own.searchsorted(steps, "right") - 1, 0)]
    return steps, table
