"""What the taps of this folder have in common: where a count goes, and a clock that only they move.

A tap replaces methods of a model's *classes* by ones that count by hand what goes in and comes out,
and never looks at what the model says of itself.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytorch_lightning as pl

from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.snapshot import Snapshot

QUANTUM = 2.0**-10
"""Seconds that a clock moves by: exact in binary, so sums of it are exact."""


class Tally:
    """Counts by stage, name and layer; the layer None is the model as a whole only.

    Attributes:
        clock: stands still but for `spend`.
        recomputing: whether a backward runs, in which nothing counts.
        off: whether what happens is no business of the monitor's, as with a copy of the model.
    """

    def __init__(self) -> None:
        self.clock = ManualClock(1000.0)
        self.trainer: pl.Trainer | None = None
        self.recomputing = self.off = False
        self._counts: dict[str, dict[str, Counter[Hashable]]] = defaultdict(
            lambda: defaultdict(Counter)
        )
        self._past: dict[str, Counter[Hashable]] = defaultdict(Counter)

    def spend(self, quanta: int) -> None:
        self.clock.advance(quanta * QUANTUM)

    def quanta(self) -> int:
        """The time, to measure with."""
        return round(self.clock.now / QUANTUM)

    @property
    def counts(self) -> bool:
        return not (self.recomputing or self.off)

    @property
    def stage(self) -> str:
        trainer = self.trainer
        if trainer is None:
            return "train"
        if trainer.sanity_checking:
            return "sanity"
        return "val" if trainer.validating else "train"

    def add(self, name: str, layer: Hashable, amount: float = 1) -> None:
        self._counts[self.stage][name][layer] += amount

    def begin(self, stage: str) -> None:
        """Begin a stage anew: only the last validation is shown."""
        for name, seen in self._counts.pop(stage, {}).items():
            self._past[name] += seen

    def of(self, name: str, stage: str = "train") -> dict[Hashable, float]:
        """A count by layer, where it is not 0."""
        seen = self._counts[stage][name]
        return {k: float(n) for k, n in seen.items() if k is not None and n}

    def whole(self, name: str, stage: str = "train") -> float:
        """A count over all layers, with what belongs to none of them."""
        return float(sum(self._counts[stage][name].values()))

    def everywhere(self, name: str, layer: Hashable) -> float:
        """A count of a layer over all stages together, those begun anew included."""
        stages = (self._past, *self._counts.values())
        return float(sum(stage[name][layer] for stage in stages))

    def copy(self) -> dict[str, dict[Hashable, float]]:
        """Training's counts by name and layer, None as well."""
        return {n: dict(seen) for n, seen in self._counts["train"].items()}

    @contextmanager
    def nothing_counts(self) -> Iterator[None]:
        self.off = True
        try:
            yield
        finally:
            self.off = False


class TallyCallback(pl.Callback):
    """Tells a tally which stage it is; keeps its counts at the end of every step."""

    def __init__(self, tally: Tally, look: Callable[[], Any] = lambda: None) -> None:
        self.tally, self.look = tally, look
        self.after: dict[int, dict[str, dict[Hashable, float]]] = {}
        self.looked: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.tally.trainer = trainer

    def on_validation_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.tally.begin("val")

    def on_before_backward(self, *args: Any) -> None:
        self.tally.recomputing = True

    def on_after_backward(self, *args: Any) -> None:
        self.tally.recomputing = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        step = trainer.global_step - 1
        if step >= 0:
            # a batch that completes no step comes after the one that completed the last
            self.after.setdefault(step, self.tally.copy())
            self.looked.setdefault(step, self.look())


def tapped(owner: type, name: str, tap: Callable[..., Any], patch: Any) -> None:
    """Replace a class's method by ``tap(original, self, *args, **kwargs)``.

    The signature stays readable: whoever looks at the method finds the arguments it really has.
    """
    original = owner.__dict__[name]

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tap(original, self, *args, **kwargs)

    patch.setattr(owner, name, method)


def same(snapshot: Snapshot, tally: Tally, name: str, stage: str = "train") -> None:
    """A counter is the tally's for every layer and for the whole; no layer more and none less."""
    shown = {layer: n for layer, n in snapshot.layers(name).items() if n}
    assert shown == tally.of(name, stage), (stage, name)
    whole = snapshot.value(name)
    assert (0.0 if math.isnan(whole) else whole) == tally.whole(name, stage), (stage, name)


def live(snapshot: Snapshot, name: str, layers: set[Any]) -> None:
    """A counter has data for just these layers, 0 included."""
    assert set(snapshot.layers(name)) == layers, name
    assert not math.isnan(snapshot.value(name)), name


def same_mean(
    snapshot: Snapshot,
    tally: Tally,
    name: str,
    total: str,
    per: str,
    *,
    unit: float = 1.0,
    stage: str = "train",
) -> None:
    """A mean or a ratio is that of the tally's sums, for every layer and for the whole."""
    below, above = tally.of(per, stage), tally.of(total, stage)
    shown = snapshot.layers(name)
    assert set(shown) == set(below), (stage, name)
    for layer, count in below.items():
        mean = above.get(layer, 0.0) * unit / count
        # far finer than one event or one quantum, coarser than the order of a sum
        assert math.isclose(shown[layer], mean, rel_tol=1e-9), (stage, name, layer)
    count = tally.whole(per, stage)
    assert count > 0, (stage, name, "says nothing")
    mean = tally.whole(total, stage) * unit / count
    assert math.isclose(snapshot.value(name), mean, rel_tol=1e-9), (stage, name)
