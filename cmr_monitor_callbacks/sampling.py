"""Which steps are looked at closely: every N-th, and how N follows what the monitor costs.

Closely means that calls are timed, similarities taken and the output looked at. Counts, entries and
errors are of every step, whatever N is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MOST: Final = 64
"""Greatest N that `Sampling` goes to by itself."""
CALM: Final = 5
"""Windows that must be cheap, one after the other, before N is halved."""
_PATIENCE: Final = 64 * CALM
"""Most windows that it waits, however often halving was too early."""
TIMED: Final = tuple(
    name
    for kind in ("capture", "reconstruction", "retrieval")
    for name in (f"avg_{kind}_time", f"{kind}_time")
)
"""Metrics and timers whose numbers are of timed calls alone."""
LOOKED_AT: Final = (
    *("reconstruction_similarity", "retrieval_similarity"),
    *("output_entropy", "output_nonfinite_share"),
)
"""Metrics that a closer look at tensors gives; no probe does."""


@dataclass(frozen=True)
class SamplingChange:
    """N became another.

    Attributes:
        before: steps from one that was looked at closely to the next.
        after: the same from now on.
        fraction: share of the time that the monitor took.
        budget: share that it may take.
    """

    before: int
    after: int
    fraction: float
    budget: float

    def __str__(self) -> str:
        if self.after > self.before:
            limit = f"budget: {self.budget:.1%}"
        else:
            limit = f"for some windows under a quarter of its budget, {self.budget:.1%}"
        return (
            f"{every(self.after)} is timed from now on: "
            f"the monitor took {self.fraction:.1%} of the time ({limit})"
        )


class Sampling:
    """Says which steps are looked at closely; all ranks that hear the same say the same.

    Args:
        start: the N that is asked for, and the least.
        adaptive: whether N follows the overhead.
        budget: share of the time that the monitor may take, in 0..1.

    >>> sampling = Sampling(10)
    >>> [step for step in range(40) if sampling.takes(step)]
    [9, 19, 29, 39]
    >>> sampling = Sampling(1, adaptive=True, budget=0.01)
    >>> sampling.hear(0.04, begin=-1)
    >>> print(sampling.change(at=49))
    every 2nd step is timed from now on: the monitor took 4.0% of the time (budget: 1.0%)
    """

    def __init__(self, start: int = 1, *, adaptive: bool = False, budget: float = 0.01) -> None:
        self._start = start
        self.adaptive = adaptive
        self.budget = budget
        self.forget()

    def forget(self) -> None:
        """Begin again with the N that was asked for."""
        self.every = self.window_every = self._wanted = self._start
        self._fraction = 0.0
        self._since = -1
        self._calm = 0
        self._patience = CALM
        self._lowered = False

    def takes(self, step: int) -> bool:
        """Whether a step is looked at closely; the first has the number 0."""
        return (step + 1) % self.every == 0

    def takes_batch(self, batch: int) -> bool:
        """Likewise of a batch of validation, test or prediction: the first always is."""
        return batch % self.every == 0

    def takes_last(self, step: int, window: int) -> bool:
        """Whether it is the last such step of its window of so many steps."""
        return self.takes(step) and step // window != (step + self.every) // window

    def takes_first(self, step: int, before: int) -> bool:
        """Whether it is the first such step after the step ``before``."""
        return self.takes(step) and step - self.every <= before

    def hear(self, fraction: float, begin: int) -> None:
        """Take note of what a window cost.

        Args:
            fraction: share of the time, in 0..1; NaN: not known.
            begin: last step of the window before; one that began before N became what it is now
                tells nothing of it.
        """
        if not self.adaptive or not fraction >= 0 or begin < self._since:
            return
        self._fraction = fraction
        if fraction > self.budget:
            self._calm = 0
            if self._lowered:  # that was too early: the next time it takes longer
                self._patience, self._lowered = min(2 * self._patience, _PATIENCE), False
            if 2 * self.every <= max(MOST, self._start):
                self._wanted = 2 * self.every
        elif fraction < self.budget / 4:
            self._calm += 1
            if self._calm >= self._patience and self.every > self._start:
                self._wanted, self._calm, self._lowered = self.every // 2, 0, True
        else:
            self._calm = 0

    def change(self, at: int) -> SamplingChange | None:
        """Let what was heard hold from the next step on; None: nothing becomes another.

        Args:
            at: step that ended a window.
        """
        if self._wanted == self.every:
            return None
        made = SamplingChange(self.every, self._wanted, self._fraction, self.budget)
        self.every, self._since = self._wanted, at
        return made

    def resume(self, n: int) -> None:
        """Go on with an N that was chosen before; without ``adaptive`` the settings count."""
        if self.adaptive and n >= self._start:
            self.every = self.window_every = self._wanted = n


def every(n: int) -> str:
    """Which steps.

    >>> every(1), every(2), every(10), every(23), every(112)
    ('every step', 'every 2nd step', 'every 10th step', 'every 23rd step', 'every 112th step')
    """
    if n == 1:
        return "every step"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"every {n}{'th' if n // 10 % 10 == 1 else ending} step"


def sampled_sources(sources: Mapping[str, str], n: int) -> Mapping[str, str]:
    """Where numbers come from, where some are of every N-th step alone: they say so.

    Args:
        sources: by metric, statistic, timer or component.
        n: 1: every step, nothing is added.

    >>> found = sampled_sources({"capture": "explicit:layer.probe"}, 10)
    >>> found["capture"], found["avg_capture_time"]
    ('explicit:layer.probe', 'explicit:layer.probe, every 10th step')
    """
    if n == 1:
        return sources
    found = dict(sources)
    for name in TIMED:
        component = name.removeprefix("avg_").removesuffix("_time")
        base = sources.get(f"avg_{component}_time") or sources.get(component)
        if base:
            found[name] = f"{base}, {every(n)}"
    for name in LOOKED_AT:
        base = sources.get(name) or _watched(sources, name)
        if base:
            found[name] = f"{base}, {every(n)}"
    return found


def _watched(sources: Mapping[str, str], name: str) -> str:
    """The source of a whole component, where it is one that takes similarities."""
    source = sources.get(name.removesuffix("_similarity"), "")
    return "" if source.startswith("explicit:") else source
