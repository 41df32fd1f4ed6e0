"""Brings together, for the diagnostics, a model, what was counted of it, and how it all began."""

from cmr_monitor_callbacks.examining.examiner import Examiner
from cmr_monitor_callbacks.examining.out_of_memory import OutOfMemory

__all__ = ["Examiner", "OutOfMemory"]
