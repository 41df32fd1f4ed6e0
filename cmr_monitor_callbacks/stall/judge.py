"""How long each phase may go without progress. Pure functions; time is passed in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

from cmr_monitor_callbacks.config.stall import StallConfig

OTHER_STAGES: Final = ("validation", "sanity check", "test", "prediction")


class Stand(NamedTuple):
    """Where a run stands.

    Attributes:
        phase: ``start``, ``data``, ``forward``, ``backward``, ``optimizer``, ``step`` (the rest of
            one), ``checkpoint``, or one of `OTHER_STAGES`.
        since: last progress, in seconds of the watchdog's clock.
        step: the step that is under way.
    """

    phase: str
    since: float
    step: int


def limit_of(
    stand: Stand, seconds: Sequence[float], config: StallConfig, *, compiling: bool = False
) -> float:
    """Seconds without progress after which a run has stalled.

    Args:
        stand: where it stands.
        seconds: of the last steps.
        config: what is allowed.
        compiling: whether ``torch.compile`` is at work.

    >>> limit_of(Stand("forward", 0.0, 9), [5.0, 6.0, 7.0], StallConfig())
    120.0
    """
    median = statistics.median(seconds) if seconds else 0.0
    limit = max(config.after, config.times_median * median)
    if not seconds or stand.phase == "start":
        limit = max(limit, config.start)
    if stand.phase == "checkpoint":
        limit = max(limit, config.checkpoint)
    if stand.phase in OTHER_STAGES:
        limit = max(limit, config.validation)
    if compiling:
        limit = max(limit, config.compilation)
    return limit
