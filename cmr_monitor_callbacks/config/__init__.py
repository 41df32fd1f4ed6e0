"""Settings: pydantic models with the specification's field names, and the shipped presets."""

from cmr_monitor_callbacks.config.alerts import (
    NO_ESCALATION,
    AlertConfig,
    EscalationConfig,
    InhibitConfig,
    RouteConfig,
    SilenceConfig,
    WarmupConfig,
)
from cmr_monitor_callbacks.config.detectors import DetectorConfig
from cmr_monitor_callbacks.config.diagnostics import DiagnosticsConfig
from cmr_monitor_callbacks.config.history import HistoryConfig
from cmr_monitor_callbacks.config.loading import as_plain, parse, plain
from cmr_monitor_callbacks.config.monitoring import (
    AlertThresholds,
    MonitoringConfig,
    ProbesConfig,
    SinksConfig,
)
from cmr_monitor_callbacks.config.presets import config_root, load_preset, preset_names
from cmr_monitor_callbacks.config.profiling import ProfilingConfig, ScheduleConfig, TriggerConfig
from cmr_monitor_callbacks.config.prometheus import PrometheusConfig
from cmr_monitor_callbacks.config.resources import ResourcesConfig
from cmr_monitor_callbacks.config.rules import (
    SEVERITIES,
    CompareConfig,
    NoDataConfig,
    ReduceConfig,
    RuleConfig,
    SelectConfig,
    ThresholdConfig,
)

__all__ = [
    "NO_ESCALATION",
    "SEVERITIES",
    "AlertConfig",
    "AlertThresholds",
    "CompareConfig",
    "DetectorConfig",
    "DiagnosticsConfig",
    "EscalationConfig",
    "HistoryConfig",
    "InhibitConfig",
    "MonitoringConfig",
    "NoDataConfig",
    "ProbesConfig",
    "ProfilingConfig",
    "PrometheusConfig",
    "ReduceConfig",
    "ResourcesConfig",
    "RouteConfig",
    "RuleConfig",
    "ScheduleConfig",
    "SelectConfig",
    "SilenceConfig",
    "SinksConfig",
    "ThresholdConfig",
    "TriggerConfig",
    "WarmupConfig",
    "as_plain",
    "config_root",
    "load_preset",
    "parse",
    "plain",
    "preset_names",
]
