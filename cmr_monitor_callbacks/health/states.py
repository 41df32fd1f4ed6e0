"""The plain data of alerts: severities, phases, states and transitions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final

from cmr_monitor_callbacks.layers import LayerId

Key = tuple[str, str, LayerId | None, int | None]
"""Rule, metric, layer, rank."""


class Severity(str, Enum):
    """How bad it is."""

    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """1, 2, 3 in rising order."""
        return _RANK[self]


_RANK: Final = {severity: i + 1 for i, severity in enumerate(Severity)}


class Phase(str, Enum):
    """Where an alert stands.

    ``recovering`` fires still: its condition has ended, but not yet for ``keep_firing_for``.
    ``nodata`` and ``error`` fire because their series has no data (see ``no_data.mode``), or
    because the condition itself failed.
    """

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    RECOVERING = "recovering"
    NODATA = "nodata"
    ERROR = "error"

    @property
    def fires(self) -> bool:
        """Whether it counts against health and people are told."""
        return self not in (Phase.INACTIVE, Phase.PENDING)


class HealthStatus(str, Enum):
    """The verdict on a component or on the system."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def code(self) -> int:
        """0 unknown, 1 healthy, 2 warning, 3 critical."""
        return _CODE[self]

    @property
    def color(self) -> str:
        """green, yellow or red; grey where nothing is known."""
        return {"unknown": "grey", "healthy": "green", "warning": "yellow", "critical": "red"}[
            self.value
        ]


_CODE: Final = {status: i for i, status in enumerate(HealthStatus)}


@dataclass(frozen=True)
class AlertState:
    """One alert: a rule on one series.

    Attributes:
        rule: name of the rule.
        metric: canonical name of the metric.
        layer: the layer; None: the whole.
        rank: the rank; None: over all ranks.
        component: on whose health it counts.
        phase: where it stands.
        severity: of the highest threshold met, or what it was raised to; None when inactive.
        since_step: step at which the condition was first met.
        since_time: the same, seconds since the Unix epoch.
        fired_time: when it started firing, seconds since the Unix epoch; NaN before.
        fired_step: the same as a step; -1 before.
        fired_window: the same as the number of the window; -1 before.
        value: what the condition stands for: the metric's value, or that beside another.
        threshold: the value of the threshold met; NaN for a condition without one.
        message: a sentence for people.
        names_metric: whether the metric tells it apart from the rule's other alerts.
    """

    rule: str
    metric: str = ""
    layer: LayerId | None = None
    rank: int | None = None
    component: str = ""
    phase: Phase = Phase.INACTIVE
    severity: Severity | None = None
    since_step: int = 0
    since_time: float = 0.0
    fired_time: float = math.nan
    fired_step: int = -1
    fired_window: int = -1
    value: float = math.nan
    threshold: float = math.nan
    message: str = ""
    names_metric: bool = False

    @property
    def key(self) -> Key:
        """What tells alerts apart."""
        return self.rule, self.metric, self.layer, self.rank

    @property
    def labels(self) -> dict[str, str]:
        """What tells it apart from the rule's other alerts: ``layer``, ``rank``, ``metric``.

        >>> AlertState("slow", "avg_retrieval_time", layer=4).labels
        {'layer': '4'}
        """
        out = {}
        if self.layer is not None:
            out["layer"] = str(self.layer)
        if self.rank is not None:
            out["rank"] = str(self.rank)
        if self.names_metric:
            out["metric"] = self.metric
        return out

    def to_dict(self) -> dict[str, Any]:
        """Plain data; None where there is no number."""
        out = asdict(self)
        out["phase"] = self.phase.value
        out["severity"] = None if self.severity is None else self.severity.value
        for name in ("fired_time", "value", "threshold"):
            out[name] = None if math.isnan(out[name]) else out[name]
        return out


@dataclass(frozen=True)
class Transition:
    """A change of an alert.

    Attributes:
        state: the alert after it.
        before: its phase before.
        step: step of the window that showed it.
        time: seconds since the Unix epoch.
        message: a sentence for people.
        severity: of the alert; of one that ended, what it was.
    """

    state: AlertState
    before: Phase
    step: int
    time: float
    message: str
    severity: Severity | None = None

    @property
    def name(self) -> str:
        """The phase after it.

        ``resolved`` where it fired and does no more, ``changed`` where only the severity did.
        """
        if self.before.fires and self.state.phase is Phase.INACTIVE:
            return "resolved"
        if self.before is self.state.phase:
            return "changed"
        return self.state.phase.value
