"""Who is told of an alert, when and how."""

from cmr_monitor_callbacks.alerts.channels import Channel, Retry, Surroundings
from cmr_monitor_callbacks.alerts.delivery import Delivery
from cmr_monitor_callbacks.alerts.desk import AlertDesk, HealthChange
from cmr_monitor_callbacks.alerts.manager import AlertManager
from cmr_monitor_callbacks.alerts.notice import Alert, Notice

__all__ = [
    "Alert",
    "AlertDesk",
    "AlertManager",
    "Channel",
    "Delivery",
    "HealthChange",
    "Notice",
    "Retry",
    "Surroundings",
]
