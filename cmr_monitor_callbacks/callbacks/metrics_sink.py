"""``trainer.callback_metrics``: what EarlyStopping and ModelCheckpoint look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr_monitor_callbacks.sinks import WindowReport


class CallbackMetricsSink:
    """Writes whole-model numbers into ``trainer.callback_metrics``, on every rank.

    Args:
        metrics: gives the Trainer's dictionary; asked anew each time, for Lightning replaces it.
    """

    def __init__(self, metrics: Callable[[], dict[str, Any]]) -> None:
        self._metrics = metrics
        self._last: dict[str, float] = {"cmr_health/score": 100.0}

    def write(self, report: WindowReport) -> None:
        """Write a window's numbers."""
        whole = report.whole
        numbers = dict(zip(report.tags[:whole], report.values[:whole], strict=True))
        self._last.update(numbers)
        self._put(numbers)

    def rewrite(self) -> None:
        """Write the last numbers again, where Lightning has emptied its dictionary."""
        self._put(self._last)

    def _put(self, numbers: dict[str, float]) -> None:
        # new tensors each time, for others keep references; one allocation for all of them
        tensors = torch.tensor(list(numbers.values()), dtype=torch.float64).unbind()
        self._metrics().update(zip(numbers, tensors, strict=True))

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
