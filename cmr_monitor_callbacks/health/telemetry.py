"""The detector `telemetry`: shift, drift and regression of many series at once, window by window.

Of each series a dozen numbers are kept, whatever its length. With x the new value, μ the reference,
λ the average of references, φ the fast average, σ the scale and ρ how alike successive values are,
a window is worked out so (n: windows with data, this one included; clip to ±3 σ where n is over
``min_windows``; w(N) = max(1/N, 2/(n + 1)), v(N) = max(1/N, 1/n)):

- residual, with what was known before the window: r = x - μ; z = clip(r / σ, ±3)
- shift (two-sided CUSUM, Page 1954, of winsorised residuals; its allowance is 1 σ, and the lag of μ
  behind a series that goes on as it did, 0.5 σ at most): with l = clip((μ - λ) / σ, ±0.5)
  rise ← max(0, rise + z - 1 - max(0, l)), fall ← max(0, fall - z - 1 - max(0, -l)), both at most
  12 g; **score = max(rise, fall) / (6 g)**, g = (1 + ρ) / (1 - ρ): by so much the variance of a
  mean of an AR(1) series is greater than that of independent values
- μ ← μ + w(64) clip(r), λ ← λ + w(64) (μ - λ), φ ← φ + w(16) clip(x - φ)
  (exponential averages, Roberts 1959, with Huber's clipped steps, 1964)
- σ ← σ + v(256) (√(π/2) min(|r|, 3 σ) - σ), the mean absolute deviation scaled to that of a normal
  distribution; never under 0.5 % of |μ|: however steady a series was, less is not clear
- ρ = clip((d₂ + e) / (d₁ + e) - 1, 0, 0.95), d₁ and d₂ the averages (v(256)) of the squared
  differences of values one and two windows apart (von Neumann 1941), each at most 4 times its
  average or e, e = 2 (0.0005 μ)²: for an AR(1) series d₂ / d₁ = 1 + ρ, and neither a level nor a
  change of it matters
- drift: **score = max(0, b (φ - μ)) / (5 σ √(g a))**, b = 1 where low is good, -1 where high is;
  where neither is, with |φ - μ|; a the variance of the two averages' difference for independent
  values of variance 1
- regression: β, the best reference since ``min_windows`` were over;
  **score = max(0, b (φ - β)) / (8 σ √(g c))**, c that of φ, 1/31

NaN leaves a series' state as it is.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SLOW: Final = 64
"""Windows that the reference reaches back."""
FAST: Final = 16
"""Windows that the fast average reaches back."""
LONG: Final = 256
"""Windows over which the scale is learned."""
CLIP: Final = 3.0
"""Greatest residual that counts, in σ: two outliers alone are no shift."""
ALLOWANCE: Final = 1.0
"""σ that a residual must exceed to speak for a shift."""
DECISION: Final = 6.0
"""Sum of a shift's residuals, in σ, that is clear."""
GREATEST: Final = 2.0
"""Greatest score of a shift: else it would last as long as the shift did."""
DRIFT_SIGMAS: Final = 5.0
"""Standard deviations of the averages' difference that are a clear drift."""
REGRESSION_SIGMAS: Final = 8.0
"""Standard deviations of the fast average under the best level that are clear."""
FLOOR: Final = 0.005
"""Least σ, as a share of the level."""
STILL: Final = 0.0005
"""Share of the level: a smaller difference of two windows does not tell how alike they are."""
OUTLIER: Final = 3.0
"""Greatest residual that σ is learned from, in σ."""
LAG: Final = 0.5
"""Most σ of lag that a series' trend is allowed."""
JUMP: Final = 4.0
"""Greatest squared difference that is learned from, in averages of it."""
ALIKE: Final = 0.95
"""Greatest ρ."""
_TO_SIGMA: Final = math.sqrt(math.pi / 2)
_TINY: Final = 1e-12


def _variance(fast: float, slow: float) -> float:
    """Variance of the difference of two exponential averages of independent values."""
    both = fast * slow / (fast + slow - fast * slow)
    return fast / (2 - fast) + slow / (2 - slow) - 2 * both


_DIFFERENCE: Final = math.sqrt(_variance(1 / FAST, 1 / SLOW))
_OF_FAST: Final = math.sqrt((1 / FAST) / (2 - 1 / FAST))

ROWS: Final = (
    "count",
    "reference",
    "lagging",
    "fast",
    "scale",
    "by_one",
    "by_two",
    "rise",
    "fall",
    "best",
    "last",
    "before",
)
(COUNT, REFERENCE, LAGGING, QUICK, SCALE, BY_ONE, BY_TWO, RISE, FALL, BEST, LAST, BEFORE) = range(
    len(ROWS)
)


class Telemetry:
    """The detector of so many series.

    Args:
        bad: direction that is bad: 1 up, -1 down, 0 either; shape ``(series,)``.
        min_windows: windows that are only learned from, by series.

    Attributes:
        state: a row of numbers for each of `ROWS`, shape ``(rows, series)``.

    >>> detector = Telemetry(np.array([-1.0]), np.array([30.0]))
    >>> for value in [0.8, 0.82] * 30 + [0.4] * 4:
    ...     scores = detector.update(np.array([value]))
    >>> (scores[:, 0] > 1).tolist()
    [True, False, False]
    """

    def __init__(self, bad: Array, min_windows: Array) -> None:
        self._bad = bad
        self._least = min_windows
        self.state = np.zeros((len(ROWS), len(bad)))
        self.state[BEST] = math.nan

    def update(self, values: Array) -> Array:
        """Take one window's values.

        Args:
            values: by series; NaN is no data.

        Returns:
            the scores of shift, drift and regression, shape ``(3, series)``: 0 while there is too
            little to learn from, and where a channel has no direction to look in.
        """
        known = np.isfinite(values)
        with np.errstate(invalid="ignore", over="ignore"):
            after = self._after(values)
        if known.all():
            self.state = after
        else:
            np.copyto(self.state, after, where=known)
        return self.scores()

    def _after(self, x: Array) -> Array:
        """The state with one more value of each series."""
        old = self.state
        new = np.empty_like(old)
        n = np.add(old[COUNT], 1.0, out=new[COUNT])
        first = n == 1
        if first.any():
            old = old.copy()
            old[[REFERENCE, LAGGING, QUICK, LAST, BEFORE]] = np.where(
                first, x, old[[REFERENCE, LAGGING, QUICK, LAST, BEFORE]]
            )
        live = n > self._least
        scale, alike = self._scale(old)
        residual = x - old[REFERENCE]
        self._sum_up(new, old, live, residual / scale, scale, alike)
        widest = np.where(live, CLIP * scale, math.inf)
        slow = np.maximum(1 / SLOW, 2 / (n + 1))
        fast = np.maximum(1 / FAST, 2 / (n + 1))
        new[REFERENCE] = old[REFERENCE] + slow * _clipped(residual, widest)
        new[LAGGING] = old[LAGGING] + slow * (new[REFERENCE] - old[LAGGING])
        new[QUICK] = old[QUICK] + fast * _clipped(x - old[QUICK], widest)
        self._spread(new, old, live, x, np.abs(residual), scale)
        new[LAST], new[BEFORE] = x, old[LAST]
        level = -self._bad * new[REFERENCE]
        new[BEST] = np.where(live, np.fmax(old[BEST], level), math.nan)
        return new

    def _sum_up(
        self, new: Array, old: Array, live: Mask, z: Array, scale: Array, alike: Array
    ) -> None:
        """The two sums of a shift."""
        z = _clipped(z, CLIP)
        lag = _clipped((old[REFERENCE] - old[LAGGING]) / scale, LAG)
        most = GREATEST * DECISION * alike
        rise = old[RISE] + z - ALLOWANCE - np.maximum(lag, 0.0)
        fall = old[FALL] - z - ALLOWANCE - np.maximum(-lag, 0.0)
        new[RISE] = np.minimum(np.maximum(rise, 0.0), most) * live
        new[FALL] = np.minimum(np.maximum(fall, 0.0), most) * live

    def _spread(
        self, new: Array, old: Array, live: Mask, x: Array, away: Array, scale: Array
    ) -> None:
        """How far values usually are from the reference, and from each other."""
        n = new[COUNT]
        weight = np.maximum(1 / LONG, 1 / np.maximum(n - 1, 1))
        away = np.where(live, np.minimum(away, OUTLIER * scale), away)
        new[SCALE] = old[SCALE] + weight * (_TO_SIGMA * away - old[SCALE])
        weight = np.where(n > 2, np.maximum(1 / LONG, 1 / np.maximum(n - 2, 1)), 0.0)
        least = 2 * (STILL * old[REFERENCE]) ** 2 + _TINY**2
        for row, earlier in ((BY_ONE, LAST), (BY_TWO, BEFORE)):
            squared = (x - old[earlier]) ** 2
            bound = JUMP * np.maximum(old[row], least)
            squared = np.where(live, np.minimum(squared, bound), squared)
            new[row] = old[row] + weight * (squared - old[row])

    @staticmethod
    def _scale(state: Array) -> tuple[Array, Array]:
        """σ, and (1 + ρ) / (1 - ρ)."""
        scale = np.maximum(state[SCALE], FLOOR * np.abs(state[REFERENCE]))
        scale = np.maximum(scale, _TINY)
        least = 2 * (STILL * state[REFERENCE]) ** 2 + _TINY**2
        alike = (state[BY_TWO] + least) / (state[BY_ONE] + least) - 1
        alike = np.minimum(np.maximum(alike, 0.0), ALIKE)
        return scale, (1 + alike) / (1 - alike)

    def scores(self) -> Array:
        """The scores as the state has them, shape ``(3, series)``."""
        state = self.state
        scale, alike = self._scale(state)
        out = np.empty((3, state.shape[1]))
        out[0] = np.maximum(state[RISE], state[FALL]) / (DECISION * alike)
        unit = scale * np.sqrt(alike)
        moved = state[QUICK] - state[REFERENCE]
        moved = np.where(self._bad == 0, np.abs(moved), self._bad * moved)
        out[1] = np.maximum(moved, 0.0) / (DRIFT_SIGMAS * _DIFFERENCE * unit)
        lost = state[BEST] + self._bad * state[QUICK]
        lost = np.where(self._bad == 0, 0.0, lost)
        out[2] = np.maximum(lost, 0.0) / (REGRESSION_SIGMAS * _OF_FAST * unit)
        out[:, state[COUNT] <= self._least] = 0.0
        return out

    def levels(self, i: int, channel: int) -> tuple[float, float]:
        """From which level to which a series went, as a channel of it has it."""
        state = self.state[:, i]
        if channel == 0:
            return float(state[REFERENCE]), float(state[LAST])
        if channel == 1:
            return float(state[REFERENCE]), float(state[QUICK])
        return float(-self._bad[i] * state[BEST]), float(state[QUICK])


def _clipped(values: Array, bound: Array | float) -> Array:
    out: Array = np.minimum(np.maximum(values, -bound), bound)
    return out
