"""Lightning callbacks: thin adapters that drive a monitor through a Trainer."""

from cmr_monitor_callbacks.callbacks.cmr import CMRMonitorCallback
from cmr_monitor_callbacks.callbacks.resources import ResourceMonitorCallback
from cmr_monitor_callbacks.callbacks.stall import StallWatchdogCallback

__all__ = ["CMRMonitorCallback", "ResourceMonitorCallback", "StallWatchdogCallback"]
