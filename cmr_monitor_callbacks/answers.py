"""What a user reads of a callback, whoever's Trainer drives it, and how it gets its monitor."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from cmr_monitor_callbacks.errors import ConfigError
from cmr_monitor_callbacks.health import HealthReport
from cmr_monitor_callbacks.monitor import CMRPerformanceMonitor
from cmr_monitor_callbacks.reports import as_html
from cmr_monitor_callbacks.snapshot import Snapshot


class Answers:
    """Questions to a callback that its monitor answers."""

    monitor: CMRPerformanceMonitor

    @property
    def snapshot(self) -> Snapshot:
        """The newest training snapshot."""
        return self.monitor.snapshot

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The last snapshot of each other stage: ``val``, ``test``, ``predict``."""
        return self.monitor.snapshots

    @property
    def health(self) -> HealthReport:
        """The newest verdict."""
        return self.monitor.health

    def summary(self, files: str = "") -> RenderableType:
        """A summary for the terminal: ``rich.print(callback.summary())``.

        Args:
            files: where the run's files are; empty: not said.
        """
        return self.monitor.summary(files)

    def _repr_html_(self) -> str:
        """The summary, where a notebook shows the callback."""
        return as_html(self.summary())


def monitor_of(monitor: CMRPerformanceMonitor | None, **settings: Any) -> CMRPerformanceMonitor:
    """The monitor that is passed, or one made from settings.

    Args:
        monitor: made elsewhere, with its own settings.
        settings: by the names of a callback's arguments; None: not given.

    Raises:
        ConfigError: a setting is wrong, or there is a monitor beside settings.

    >>> monitor_of(CMRPerformanceMonitor(), alerts=None, history={})
    Traceback (most recent call last):
    cmr_monitor_callbacks.errors.ConfigError: history must be set on the monitor that is passed
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if monitor is None:
        alerts, monitoring = given.pop("alerts", None), given.pop("monitoring", None)
        return CMRPerformanceMonitor(monitoring, alert_config=alerts, **given)
    if given:
        raise ConfigError(f"{' and '.join(given)} must be set on the monitor that is passed")
    return monitor
