"""Which of a snapshot's numbers are in the store's windows: those that have ever had data."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.history.columns import AnyColumns, Array

C = TypeVar("C", bound=AnyColumns)


class Plan(Generic[C]):
    """Which columns of a snapshot's shape, or of a sample, have ever had data."""

    def __init__(self, columns: C) -> None:
        self.columns = columns
        self.layout = 0
        self.take(np.zeros(0, dtype=np.intp), 0)

    def meets_new(self, gathered: Array) -> bool:
        """Whether a series has data for the first time."""
        greatest = np.fmax.reduce(gathered.take(self._unseen), initial=math.nan)
        return self.layout == 0 or bool(greatest == greatest)

    def extended(self, gathered: Array) -> NDArray[np.intp]:
        """The columns that have had data, with these."""
        values = gathered.take(self.columns.index)
        return np.union1d(self.seen, np.flatnonzero(values == values)).astype(np.intp)

    def take(self, seen: NDArray[np.intp], layout: int) -> None:
        """Keep these columns from now on, as that layout."""
        self.seen, self.layout = seen, layout
        self.index = self.columns.index[seen]
        self._unseen = np.delete(self.columns.index, seen)
