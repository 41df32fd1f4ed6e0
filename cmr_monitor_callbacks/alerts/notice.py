"""What people are told: one notice, of one or several alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cmr_monitor_callbacks.health import Severity

_SHOWN: Final = 8


@dataclass(frozen=True)
class Alert:
    """One alert, as a notice tells of it.

    Attributes:
        rule: name of the rule.
        labels: what tells it apart and what the rule adds: ``alert``, ``component``, ``severity``,
            and where they apply ``layer``, ``rank``, ``metric``.
        severity: of the alert.
        resolved: whether it ended.
        message: a sentence for people.
        value: the metric's value.
        threshold: the threshold met.
        step: step of the window that showed it.
        time: when it started to fire, or ended, seconds since the Unix epoch.
        runbook: where to read on; '' where the rule names nothing.
    """

    rule: str
    labels: Mapping[str, str]
    severity: Severity
    resolved: bool
    message: str
    value: float
    threshold: float
    step: int
    time: float
    runbook: str = ""


@dataclass(frozen=True)
class Notice:
    """One message to people.

    Attributes:
        alerts: what it tells of, the worst first; empty in a summary of what was held back.
        severity: of the worst.
        resolved: whether all of them ended.
        step: step of the window at which it was made.
        time: when it was made, seconds since the Unix epoch.
        group: labels that its alerts share.
        summary: the message itself where there is no single alert to tell of.
    """

    alerts: tuple[Alert, ...]
    severity: Severity
    resolved: bool
    step: int
    time: float
    group: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""

    @property
    def title(self) -> str:
        """Its state and its rules, such as ``WARNING storage_refused``."""
        word = "RESOLVED" if self.resolved else self.severity.value.upper()
        names = ", ".join(dict.fromkeys(alert.rule for alert in self.alerts))
        return f"{word} {names}" if names else word

    @property
    def text(self) -> str:
        """The alerts' sentences, in one line; of many the worst, and how many more there are."""
        if self.summary:
            return self.summary
        shown = [alert.message for alert in self.alerts[:_SHOWN]]
        more = len(self.alerts) - len(shown)
        return "; ".join([*shown, *([f"and {more} more"] if more else [])])

    def __str__(self) -> str:
        """One line.

        >>> from cmr_monitor_callbacks.health import Severity
        >>> sick = Alert("slow", {"layer": "4"}, Severity.ERROR, False, "0.3 s", 0.3, 0.1, 7, 0.0)
        >>> str(Notice((sick,), Severity.ERROR, False, 7, 0.0))
        '[cmr-monitor] ERROR slow at step 7: 0.3 s'
        """
        return f"[cmr-monitor] {self.title} at step {self.step}: {self.text}"
