"""What people read after a run."""

from cmr_monitor_callbacks.reports.summary import run_summary

__all__ = ["run_summary"]
