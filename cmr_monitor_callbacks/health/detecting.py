"""Rules that judge a detector's score: their instances, and what the detector remembers of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, Polarity
from cmr_monitor_callbacks.config.detectors import DETECTOR_CHANNELS
from cmr_monitor_callbacks.health.series import Series
from cmr_monitor_callbacks.health.telemetry import COUNT, Telemetry

Array = NDArray[np.float64]
Places = NDArray[np.intp]
_BAD: Final = {Polarity.HIGHER: -1.0, Polarity.LOWER: 1.0, Polarity.NEITHER: 0.0}


class Detectors:
    """The detector's part of the instances of `Series`.

    Args:
        series: the instances.
    """

    def __init__(self, series: Series) -> None:
        wanted = np.array([rule.channels != () for rule in series.rules], dtype=bool)
        of_rule = np.asarray(series.rule, dtype=np.intp)
        self.at: Places = np.flatnonzero(wanted[of_rule]) if len(of_rule) else of_rule
        self._place = {int(i): n for n, i in enumerate(self.at)}
        rules = [series.rules[of_rule[i]] for i in self.at]
        self._chosen = np.array(
            [[name in rule.channels for rule in rules] for name in DETECTOR_CHANNELS], dtype=bool
        )
        self._telemetry = Telemetry(
            np.array([_BAD[BY_NAME[series.metric[i]].polarity] for i in self.at], dtype=float),
            np.array([rule.min_windows for rule in rules], dtype=float),
        )

    def __len__(self) -> int:
        return len(self.at)

    def judge(self, values: Array) -> None:
        """Put the scores in the place of the values; what has no data has no score."""
        given = values[self.at]
        scores = np.where(self._chosen, self._telemetry.update(given), 0.0).max(axis=0)
        values[self.at] = np.where(np.isfinite(given), scores, math.nan)

    def found(self, i: int) -> tuple[str, float, float]:
        """The channel that has the greatest score of an instance, from which level to which.

        Of an instance without a detector: '' and NaN.
        """
        n = self._place.get(i)
        if n is None:
            return "", math.nan, math.nan
        scores = np.where(self._chosen[:, n], self._telemetry.scores()[:, n], -1.0)
        channel = int(scores.argmax())
        return DETECTOR_CHANNELS[channel], *self._telemetry.levels(n, channel)

    # -- going on -----------------------------------------------------------------------------

    def noteworthy(self) -> Places:
        """Instances that have learned anything."""
        known: Places = self.at[self._telemetry.state[COUNT] > 0]
        return known

    def take(self, other: Detectors, places: Mapping[int, int]) -> None:
        """Take over instances of other detectors: from where to where."""
        pairs = [
            (self._place[here], other._place[there])
            for there, here in places.items()
            if here in self._place and there in other._place
        ]
        if pairs:
            here, there = map(list, zip(*pairs, strict=True))
            self._telemetry.state[:, here] = other._telemetry.state[:, there]

    def of(self, i: int) -> list[float]:
        """One instance as plain data; empty without a detector."""
        n = self._place.get(i)
        column: list[float] = [] if n is None else self._telemetry.state[:, n].tolist()
        return column

    def put(self, i: int, data: Sequence[float]) -> None:
        """The inverse of `of`; a state of another length is of another version, and is left."""
        n = self._place.get(i)
        if n is not None and len(data) == len(self._telemetry.state):
            self._telemetry.state[:, n] = data
