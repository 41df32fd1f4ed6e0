"""A run that stands still: noticed, named, and its stacks written down."""

from cmr_monitor_callbacks.stall.judge import Stand, limit_of
from cmr_monitor_callbacks.stall.watchdog import StallReport, StallWatchdog

__all__ = ["StallReport", "StallWatchdog", "Stand", "limit_of"]
