"""When a run that stands still is told of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cmr_monitor_callbacks.config.loading import Settings
from cmr_monitor_callbacks.config.spans import PositiveDuration


class StallConfig(Settings):
    """The stall watchdog: a thread of each rank that notices that steps have stopped.

    >>> StallConfig(after="2m").after
    120.0
    """

    enabled: bool = True
    """Whether there is one."""
    after: PositiveDuration = 60.0
    """Seconds without progress in a training step, at least."""
    times_median: float = Field(default=20.0, gt=0)
    """And so many times the median step."""
    start: PositiveDuration = 600.0
    """The same until the first step is over: data, sanity check, first kernels."""
    validation: PositiveDuration = 300.0
    """The same in a batch of validation, test or prediction, and between two of them."""
    checkpoint: PositiveDuration = 600.0
    """The same while a checkpoint is written."""
    compilation: PositiveDuration = 1800.0
    """The same while ``torch.compile`` compiles."""
    dump_stacks: bool = True
    """Whether all Python stacks are written to a file."""
    folder: str | None = None
    """Where to; null: the run's log directory."""
    action: Literal["none", "interrupt", "exit"] = "none"
    """What follows: nothing; ``interrupt``: KeyboardInterrupt in the main thread; ``exit``: the
    process ends with status 75, for a launcher that starts it again."""
