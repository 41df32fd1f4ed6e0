"""From a snapshot to a verdict: rules, states, a score. Pure functions of what is passed in."""

from cmr_monitor_callbacks.health.engine import AlertEngine
from cmr_monitor_callbacks.health.numbers import GivenNumbers, Numbers
from cmr_monitor_callbacks.health.report import (
    ComponentHealth,
    HealthReport,
    assess,
    reported_name,
)
from cmr_monitor_callbacks.health.rules import AlertRule, Threshold, compile_rule, compile_rules
from cmr_monitor_callbacks.health.states import (
    AlertState,
    HealthStatus,
    Key,
    Phase,
    Severity,
    Transition,
)

__all__ = [
    "AlertEngine",
    "AlertRule",
    "AlertState",
    "ComponentHealth",
    "GivenNumbers",
    "HealthReport",
    "HealthStatus",
    "Key",
    "Numbers",
    "Phase",
    "Severity",
    "Threshold",
    "Transition",
    "assess",
    "compile_rule",
    "compile_rules",
    "reported_name",
]
