"""What a look at the whole model finds that no single number shows."""

from cmr_monitor_callbacks.diagnostics.hooks import (
    Finding,
    HookInfo,
    HookMeasurement,
    hook_conflicts,
    list_hooks,
    measure_hooks,
)

__all__ = [
    "Finding",
    "HookInfo",
    "HookMeasurement",
    "hook_conflicts",
    "list_hooks",
    "measure_hooks",
]
