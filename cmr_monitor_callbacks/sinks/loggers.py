"""Any logger with ``log_metrics(metrics, step)``: Lightning's CSV, W&B, MLflow and others."""

from __future__ import annotations

from typing import Any, Protocol

from cmr_monitor_callbacks.sinks.base import WindowReport


class MetricsLogger(Protocol):
    """The part of a Lightning logger that is used."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers at a step."""
        ...

    def save(self) -> None:
        """Write what is pending."""
        ...


class LoggerSink:
    """One ``log_metrics`` call per window.

    Args:
        logger: the logger.
    """

    def __init__(self, logger: Any) -> None:
        self._logger: MetricsLogger = logger

    def write(self, report: WindowReport) -> None:
        """Log all scalars of the window in one call."""
        self._logger.log_metrics(report.scalars(), step=report.snapshot.step)

    def flush(self) -> None:
        """Have the logger save."""
        self._logger.save()

    def close(self) -> None:
        """The logger belongs to the Trainer, which closes it."""
