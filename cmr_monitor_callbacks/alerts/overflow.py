"""Too many notices: what comes instead is a summary, never silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cmr_monitor_callbacks.alerts.notice import Alert, Notice
from cmr_monitor_callbacks.config.alerts import OverflowConfig
from cmr_monitor_callbacks.health import Severity


class Overflow:
    """Bounds how many notices are sent in a stretch of time; critical ones always are.

    The last one that fits is a summary of what is too many. What comes until there is room again is
    summed up in the next.

    Args:
        config: how many, in how many seconds.
    """

    def __init__(self, config: OverflowConfig) -> None:
        self._config = config
        self._sent: list[float] = []
        self._held: list[Alert] = []

    def bounded(
        self, notices: Sequence[Notice], *, step: int, now: float, last: bool = False
    ) -> list[Notice]:
        """Those notices that are sent now.

        Args:
            notices: that are due.
            step: the window's last step.
            now: seconds since the Unix epoch.
            last: whether nothing follows.
        """
        self._sent = [time for time in self._sent if now - time < self._config.window]
        urgent = [notice for notice in notices if _urgent(notice)]
        rest = [notice for notice in notices if not _urgent(notice)]
        room = self._config.n - len(self._sent) - len(urgent)
        if not self._held and len(rest) <= room:
            sent = urgent + rest
        else:
            fit = rest[: max(0, room - 1)] if not self._held else []
            for notice in rest[len(fit) :]:
                self._held.extend(notice.alerts)
            sent = urgent + fit
            if self._held and (room > 0 or last):
                sent.append(self._summary(step, now))
        self._sent.extend([now] * len(sent))
        return sent

    def set_back(self, seconds: float) -> None:
        """The clock was set: so many seconds are added to what is remembered."""
        self._sent = [time + seconds for time in self._sent]

    def _summary(self, step: int, now: float) -> Notice:
        alerts, self._held = self._held, []
        firing = [alert for alert in alerts if not alert.resolved]
        worst = max(firing or alerts, key=lambda alert: alert.severity.rank)
        counted = Counter(
            f"{'resolved' if alert.resolved else alert.severity.value} {alert.rule}"
            for alert in alerts
        )
        parts = ", ".join(f"{count} {name}" for name, count in counted.most_common())
        config = self._config
        text = (
            f"{len(alerts)} alerts in one notice, for there were more than {config.n} notices in "
            f"{config.window:g} s: {parts}"
        )
        return Notice(tuple(alerts), worst.severity, not firing, step, now, {}, text)

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        held = [{**asdict(alert), "severity": alert.severity.value} for alert in self._held]
        return {"sent": list(self._sent), "held": held}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._sent = list(state["sent"])
        self._held = [
            Alert(**{**item, "severity": Severity(item["severity"])}) for item in state["held"]
        ]


def _urgent(notice: Notice) -> bool:
    return notice.severity is Severity.CRITICAL and not notice.resolved
