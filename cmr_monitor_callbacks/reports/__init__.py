"""What people read of a run: the terminal's summary, reports and exports."""

from cmr_monitor_callbacks.reports.contents import report_of
from cmr_monitor_callbacks.reports.summary import as_html, run_summary

__all__ = ["as_html", "report_of", "run_summary"]
