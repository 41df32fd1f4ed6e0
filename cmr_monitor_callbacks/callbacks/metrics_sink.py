"""``trainer.callback_metrics``: what EarlyStopping and ModelCheckpoint look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cmr_monitor_callbacks.sinks import WindowReport


class CallbackMetricsSink:
    """Writes whole-model numbers into ``trainer.callback_metrics``, on every rank.

    Args:
        metrics: gives the Trainer's dictionary; asked anew each time, for Lightning replaces it.
        tags: of the numbers to write before the first window ends.
        values: these numbers.
    """

    def __init__(
        self, metrics: Callable[[], dict[str, Any]], tags: Sequence[str], values: Sequence[float]
    ) -> None:
        self._metrics = metrics
        self._tags = tags
        self._values = values

    def write(self, report: WindowReport) -> None:
        """Write a window's numbers."""
        tags, values = report.tags[: report.whole], report.values[: report.whole]
        if report.snapshot.stage == "train":
            self._tags, self._values = tags, values
        self._put(tags, values)

    def rewrite(self) -> None:
        """Write the last numbers of training again, where Lightning has emptied its dictionary."""
        self._put(self._tags, self._values)

    def put(self, tags: Sequence[str], values: Sequence[float]) -> None:
        """Write these numbers, and write them again when asked."""
        self._tags, self._values = tags, values
        self._put(tags, values)

    def _put(self, tags: Sequence[str], values: Sequence[float]) -> None:
        # new tensors each time, for others keep references; one allocation for all of them
        tensors = torch.from_numpy(np.array(values, dtype=np.float64)).unbind()
        self._metrics().update(zip(tags, tensors, strict=True))

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
