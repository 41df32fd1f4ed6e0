"""What a buffer holds, as a watch reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Holding:
    """What a buffer holds of one layer.

    Attributes:
        entries: now.
        capacity: at most; None: no limit is known.
        nbytes: of the entries' tensors; None: not known.
        held: entries that it held when it was found, where it has not said so yet.
    """

    entries: int
    capacity: int | None
    nbytes: int | None
    held: int = 0
