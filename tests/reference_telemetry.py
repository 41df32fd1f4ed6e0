"""The detector `telemetry` for one series, in plain Python, from the formulas of its docstring."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class OneSeries:
    """What is remembered of a series.

    Args:
        bad: 1 where up is bad, -1 where down is, 0 where neither is.
        min_windows: windows that are only learned from.
    """

    bad: int
    min_windows: int
    n: int = 0
    mu: float = 0.0
    lam: float = 0.0
    phi: float = 0.0
    spread: float = 0.0
    d1: float = 0.0
    d2: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    beta: float | None = None
    one_ago: float = 0.0
    two_ago: float = 0.0

    @property
    def sigma(self) -> float:
        return max(self.spread, 0.005 * abs(self.mu), 1e-12)

    @property
    def g(self) -> float:
        e = 2 * (0.0005 * self.mu) ** 2 + 1e-24
        rho = min(max((self.d2 + e) / (self.d1 + e) - 1, 0.0), 0.95)
        return (1 + rho) / (1 - rho)

    def update(self, x: float) -> tuple[float, float, float]:
        """Scores of shift, drift and regression after one more window."""
        if not math.isfinite(x):
            return self.scores()
        self.n += 1
        if self.n == 1:
            self.mu = self.lam = self.phi = self.one_ago = self.two_ago = x
        live = self.n > self.min_windows
        sigma, g = self.sigma, self.g
        r = x - self.mu
        if live:
            self._shift(r, sigma, g)
        step = 3 * sigma if live else math.inf
        w64, w16 = max(1 / 64, 2 / (self.n + 1)), max(1 / 16, 2 / (self.n + 1))
        floor = 2 * (0.0005 * self.mu) ** 2 + 1e-24
        away = min(abs(r), 3 * sigma) if live else abs(r)
        self.spread += max(1 / 256, 1 / max(self.n - 1, 1)) * (
            math.sqrt(math.pi / 2) * away - self.spread
        )
        self.mu += w64 * min(max(r, -step), step)
        self.lam += w64 * (self.mu - self.lam)
        self.phi += w16 * min(max(x - self.phi, -step), step)
        if self.n > 2:
            v = max(1 / 256, 1 / (self.n - 2))
            q1, q2 = (x - self.one_ago) ** 2, (x - self.two_ago) ** 2
            if live:
                q1, q2 = min(q1, 4 * max(self.d1, floor)), min(q2, 4 * max(self.d2, floor))
            self.d1 += v * (q1 - self.d1)
            self.d2 += v * (q2 - self.d2)
        self.two_ago, self.one_ago = self.one_ago, x
        if live:
            level = -self.bad * self.mu
            self.beta = level if self.beta is None else max(self.beta, level)
        return self.scores()

    def _shift(self, r: float, sigma: float, g: float) -> None:
        z = min(max(r / sigma, -3.0), 3.0)
        lag = min(max((self.mu - self.lam) / sigma, -0.5), 0.5)
        self.rise = min(max(0.0, self.rise + z - 1 - max(0.0, lag)), 12 * g)
        self.fall = min(max(0.0, self.fall - z - 1 - max(0.0, -lag)), 12 * g)

    def scores(self) -> tuple[float, float, float]:
        if self.n <= self.min_windows or self.beta is None:
            return 0.0, 0.0, 0.0
        fast, slow = 1 / 16, 1 / 64
        a = sum(w / (2 - w) for w in (fast, slow)) - 2 * fast * slow / (fast + slow - fast * slow)
        moved = self.phi - self.mu
        drift = abs(moved) if self.bad == 0 else max(0.0, self.bad * moved)
        lost = 0.0 if self.bad == 0 else max(0.0, self.beta + self.bad * self.phi)
        sigma, g = self.sigma, self.g
        return (
            max(self.rise, self.fall) / (6 * g),
            drift / (5 * sigma * math.sqrt(g * a)),
            lost / (8 * sigma * math.sqrt(g / 31)),
        )
