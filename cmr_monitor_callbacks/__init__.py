"""A training monitor for memory-augmented transformers.

``Trainer(callbacks=[CMRMonitorCallback()])`` is all that a user writes. Names are loaded when they
are first used: importing `CMRProbe` into a model loads no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmr_monitor_callbacks.alerts import Alert, Notice
    from cmr_monitor_callbacks.callbacks import (
        CMRMonitorCallback,
        ResourceMonitorCallback,
        StallWatchdogCallback,
    )
    from cmr_monitor_callbacks.config import (
        AlertConfig,
        HistoryConfig,
        MonitoringConfig,
        ProbesConfig,
        ProfilingConfig,
        ResourcesConfig,
        RuleConfig,
        SinksConfig,
    )
    from cmr_monitor_callbacks.errors import (
        CMRMonitorError,
        ConfigError,
        CriticalAlert,
        LayerError,
        MonitorFailure,
    )
    from cmr_monitor_callbacks.health import (
        AlertRule,
        AlertState,
        HealthReport,
        HealthStatus,
        Severity,
    )
    from cmr_monitor_callbacks.history import HistoryError, RunHistory
    from cmr_monitor_callbacks.metrics import (
        BufferMetric,
        CaptureMetric,
        ErrorMetric,
        LatencyMetric,
        ReconstructionMetric,
        RetrievalMetric,
        ThroughputMetric,
    )
    from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
    from cmr_monitor_callbacks.probes import CMRProbe
    from cmr_monitor_callbacks.sinks import InMemorySink
    from cmr_monitor_callbacks.snapshot import Snapshot
    from cmr_monitor_callbacks.stall import StallReport

__version__ = "0.1.0"

_HOMES = {
    "Alert": "alerts",
    "AlertConfig": "config",
    "AlertRule": "health",
    "AlertState": "health",
    "BufferMetric": "metrics",
    "CMRMonitorCallback": "callbacks",
    "CMRMonitorError": "errors",
    "CMRPerformanceMonitor": "monitor",
    "CMRProbe": "probes",
    "CaptureMetric": "metrics",
    "ConfigError": "errors",
    "CriticalAlert": "errors",
    "ErrorMetric": "metrics",
    "HealthReport": "health",
    "HealthStatus": "health",
    "HistoryConfig": "config",
    "HistoryError": "history",
    "InMemorySink": "sinks",
    "LatencyMetric": "metrics",
    "LayerError": "errors",
    "MonitorFailure": "errors",
    "MonitoringConfig": "config",
    "Notice": "alerts",
    "ProbesConfig": "config",
    "ProfilingConfig": "config",
    "ReconstructionMetric": "metrics",
    "ResourceMonitorCallback": "callbacks",
    "ResourcesConfig": "config",
    "RetrievalMetric": "metrics",
    "RuleConfig": "config",
    "RunHistory": "history",
    "Severity": "health",
    "SinksConfig": "config",
    "Snapshot": "snapshot",
    "StallReport": "stall",
    "StallWatchdogCallback": "callbacks",
    "ThroughputMetric": "metrics",
}

__all__ = [
    "Alert",
    "AlertConfig",
    "AlertRule",
    "AlertState",
    "BufferMetric",
    "CMRMonitorCallback",
    "CMRMonitorError",
    "CMRPerformanceMonitor",
    "CMRProbe",
    "CaptureMetric",
    "ConfigError",
    "CriticalAlert",
    "ErrorMetric",
    "HealthReport",
    "HealthStatus",
    "HistoryConfig",
    "HistoryError",
    "InMemorySink",
    "LatencyMetric",
    "LayerError",
    "MonitorFailure",
    "MonitoringConfig",
    "Notice",
    "ProbesConfig",
    "ProfilingConfig",
    "ReconstructionMetric",
    "ResourceMonitorCallback",
    "ResourcesConfig",
    "RetrievalMetric",
    "RuleConfig",
    "RunHistory",
    "Severity",
    "SinksConfig",
    "Snapshot",
    "StallReport",
    "StallWatchdogCallback",
    "ThroughputMetric",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
