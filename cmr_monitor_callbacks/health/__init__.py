"""From a snapshot to a verdict: rules, states, a score. Pure functions of what is passed in."""

from cmr_monitor_callbacks.health.engine import evaluate
from cmr_monitor_callbacks.health.report import ComponentHealth, HealthReport, assess
from cmr_monitor_callbacks.health.rules import AlertRule, Threshold, compile_rules
from cmr_monitor_callbacks.health.states import (
    AlertState,
    HealthStatus,
    Phase,
    Severity,
    Transition,
)

__all__ = [
    "AlertRule",
    "AlertState",
    "ComponentHealth",
    "HealthReport",
    "HealthStatus",
    "Phase",
    "Severity",
    "Threshold",
    "Transition",
    "assess",
    "compile_rules",
    "evaluate",
]
