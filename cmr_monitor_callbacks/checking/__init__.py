"""A dry check before a long run: settings, a model, the rules on it, and what watching costs.

Nothing is trained and no file is written.
"""

from cmr_monitor_callbacks.checking.check import check
from cmr_monitor_callbacks.checking.report import (
    Channel,
    CheckReport,
    Cost,
    Counted,
    Measured,
    ModelPart,
    RuleNote,
    SettingsPart,
)

__all__ = [
    "Channel",
    "CheckReport",
    "Cost",
    "Counted",
    "Measured",
    "ModelPart",
    "RuleNote",
    "SettingsPart",
    "check",
]
