"""The plain data of alerts: severities, phases, states and transitions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from cmr_monitor_callbacks.layers import LayerId


class Severity(str, Enum):
    """How bad it is."""

    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """1, 2, 3 in rising order."""
        return list(Severity).index(self) + 1


class Phase(str, Enum):
    """Where an alert stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


class HealthStatus(str, Enum):
    """The verdict on a component or on the system."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def code(self) -> int:
        """0 unknown, 1 healthy, 2 warning, 3 critical."""
        return list(HealthStatus).index(self)

    @property
    def color(self) -> str:
        """green, yellow or red; grey where nothing is known."""
        return {"unknown": "grey", "healthy": "green", "warning": "yellow", "critical": "red"}[
            self.value
        ]


@dataclass(frozen=True)
class AlertState:
    """One alert: a rule at one layer (None: the whole).

    Attributes:
        rule: name of the rule.
        layer: the layer, or None.
        phase: where it stands.
        severity: of the highest threshold met; None when inactive.
        since_step: step at which the condition was first met.
        since_time: the same, seconds since the Unix epoch.
        since_window: the same, number of the window.
        fired_time: when it started firing, seconds since the Unix epoch; None before.
        value: the metric's last value.
        threshold: the threshold met.
    """

    rule: str
    layer: LayerId | None = None
    phase: Phase = Phase.INACTIVE
    severity: Severity | None = None
    since_step: int = 0
    since_time: float = 0.0
    since_window: int = 0
    fired_time: float | None = None
    value: float = float("nan")
    threshold: float = float("nan")

    @property
    def key(self) -> tuple[str, LayerId | None]:
        """What tells alerts apart."""
        return self.rule, self.layer

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        out = asdict(self)
        out["phase"] = self.phase.value
        out["severity"] = None if self.severity is None else self.severity.value
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AlertState:
        """The inverse of `to_dict`."""
        severity = data["severity"]
        return cls(
            **{
                **data,
                "phase": Phase(data["phase"]),
                "severity": None if severity is None else Severity(severity),
            }
        )


@dataclass(frozen=True)
class Transition:
    """A change of an alert.

    Attributes:
        state: the alert after it.
        before: its phase before.
        step: step of the window that showed it.
        time: seconds since the Unix epoch.
        message: a sentence for people.
    """

    state: AlertState
    before: Phase
    step: int
    time: float
    message: str

    @property
    def name(self) -> str:
        """pending, firing, resolved or inactive; ``raised`` where only the severity rose."""
        if self.before is Phase.FIRING and self.state.phase is Phase.INACTIVE:
            return "resolved"
        if self.before is self.state.phase:
            return "changed"
        return self.state.phase.value
