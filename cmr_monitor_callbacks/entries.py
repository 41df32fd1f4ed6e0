"""What is read of a model by looking at it: entries of its memory, what it declares and counts."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LayerEntries:
    """Entries that one layer holds, a sample of them spread evenly over all.

    Attributes:
        layer: id of the layer.
        path: of what holds them, for people.
        count: entries held.
        capacity: at most; None: no limit is known.
        states: shape ``(sampled, dim)``; None: not known.
        relevance: shape ``(sampled,)``; None: entries do not say it. So of those below.
        stored_at: when each came, in the model's own time (steps or seconds).
        read_at: when each was last read, in the same time.
        accesses: how often each was read.

    >>> LayerEntries(2, "buffer", 3, 8).utilization
    0.375
    """

    layer: Hashable
    path: str
    count: int
    capacity: int | None = None
    states: Array | None = field(default=None, repr=False)
    relevance: Array | None = field(default=None, repr=False)
    stored_at: Array | None = field(default=None, repr=False)
    read_at: Array | None = field(default=None, repr=False)
    accesses: Array | None = field(default=None, repr=False)

    @property
    def sampled(self) -> int:
        """Entries that were looked at."""
        for values in (self.states, self.relevance, self.stored_at, self.read_at, self.accesses):
            if values is not None:
                return len(values)
        return 0

    @property
    def utilization(self) -> float | None:
        """Entries / capacity."""
        return self.count / self.capacity if self.capacity else None

    @property
    def never_read(self) -> NDArray[np.bool_] | None:
        """Which of the sample nobody has read, shape ``(sampled,)``; None: not known."""
        if self.accesses is not None:
            unused: NDArray[np.bool_] = self.accesses == 0
            return unused
        if self.read_at is not None and self.stored_at is not None:
            unread: NDArray[np.bool_] = self.read_at <= self.stored_at
            return unread
        return None


@dataclass(frozen=True)
class Declared:
    """What a model says of its own layers.

    Attributes:
        targets: by the path of the setting, the layers that it names.
        blocks: length of the model's longest list of modules; 0: it has none.
    """

    targets: tuple[tuple[str, tuple[int, ...]], ...] = ()
    blocks: int = 0


@dataclass(frozen=True)
class OwnCount:
    """A number that a model keeps itself.

    Attributes:
        where: path and key.
        metric: the metric that it means.
        layer: None: of the whole.
        value: as it stands.
    """

    where: str
    metric: str
    layer: Hashable | None
    value: float
