"""Settings: pydantic models with the specification's field names, and the shipped presets."""

from cmr_monitor_callbacks.config.alerts import (
    SEVERITIES,
    AlertConfig,
    EscalationConfig,
    RuleConfig,
    SelectConfig,
    ThresholdConfig,
)
from cmr_monitor_callbacks.config.loading import parse, plain
from cmr_monitor_callbacks.config.monitoring import (
    AlertThresholds,
    MonitoringConfig,
    ProbesConfig,
    SinksConfig,
)
from cmr_monitor_callbacks.config.presets import config_root, load_preset, preset_names

__all__ = [
    "SEVERITIES",
    "AlertConfig",
    "AlertThresholds",
    "EscalationConfig",
    "MonitoringConfig",
    "ProbesConfig",
    "RuleConfig",
    "SelectConfig",
    "SinksConfig",
    "ThresholdConfig",
    "config_root",
    "load_preset",
    "parse",
    "plain",
    "preset_names",
]
