"""Hears what would be delivered, at once and on the calling thread."""

from __future__ import annotations

from cmr_monitor_callbacks import Notice
from cmr_monitor_callbacks.alerts import Surroundings


class Ear:
    """Stands in for a `Delivery`: ``monitor.alerts.delivery = Ear()``."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.around = Surroundings()
        self.dropped = 0

    @property
    def heard(self) -> list[str]:
        """Every notice as one line."""
        return [str(notice) for notice in self.notices]

    def submit(self, notice: Notice) -> None:
        self.notices.append(notice)

    def flush(self, timeout: float = 0.0, *, remote: bool = True) -> bool:
        return True

    def close(self, timeout: float = 0.0) -> None:
        pass

    def take_failures(self) -> list[tuple[str, Exception]]:
        return []
