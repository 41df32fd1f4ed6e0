"""What a look at the whole model finds that no single number shows."""

from cmr_monitor_callbacks.diagnostics.examination import examine
from cmr_monitor_callbacks.diagnostics.finding import Finding
from cmr_monitor_callbacks.diagnostics.ghosts import MOST, Ghosts, Missed
from cmr_monitor_callbacks.diagnostics.hooks import (
    HookConflict,
    HookInfo,
    HookMeasurement,
    hook_conflicts,
    list_hooks,
    measure_hooks,
)
from cmr_monitor_callbacks.diagnostics.material import Balance, Compared, Material
from cmr_monitor_callbacks.diagnostics.showing import diagnostics_table
from cmr_monitor_callbacks.diagnostics.table import DIAGNOSTICS, SECTIONS, Diagnostic

__all__ = [
    "DIAGNOSTICS",
    "MOST",
    "SECTIONS",
    "Balance",
    "Compared",
    "Diagnostic",
    "Finding",
    "Ghosts",
    "HookConflict",
    "HookInfo",
    "HookMeasurement",
    "Material",
    "Missed",
    "diagnostics_table",
    "examine",
    "hook_conflicts",
    "list_hooks",
    "measure_hooks",
]
