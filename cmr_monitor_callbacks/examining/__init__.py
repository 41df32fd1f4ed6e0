"""Brings together, for the diagnostics, a model, what was counted of it, and how it all began."""

from cmr_monitor_callbacks.examining.examiner import Examiner

__all__ = ["Examiner"]
