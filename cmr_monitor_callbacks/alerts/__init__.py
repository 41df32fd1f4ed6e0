"""Who is told of an alert, when and how."""

from cmr_monitor_callbacks.alerts.channels import Channel, ConsoleChannel, LogChannel
from cmr_monitor_callbacks.alerts.desk import AlertDesk
from cmr_monitor_callbacks.alerts.manager import AlertManager, Notice

__all__ = ["AlertDesk", "AlertManager", "Channel", "ConsoleChannel", "LogChannel", "Notice"]
