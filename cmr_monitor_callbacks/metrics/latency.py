"""Where a step's time goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Values
from cmr_monitor_callbacks.metrics.folding import Array


class LatencyMetric(LayeredMetric):
    """Step, data-wait, forward, backward, optimizer and monitor time, in seconds.

    >>> metric = LatencyMetric()
    >>> metric.update(step=0.12, data_wait=0.01, forward=0.05, backward=0.06, optimizer=0.01)
    >>> metric.update(step=0.14, data_wait=0.01, forward=0.05, backward=0.08, optimizer=0.01)
    >>> values = metric.compute()
    >>> round(float(values["step_time"]), 3), round(float(values["avg_latency"]), 3)
    (0.13, 0.05)
    """

    component = "timing"
    record = "step"

    def update(
        self,
        step: Values = None,
        data_wait: Values = None,
        forward: Values = None,
        backward: Values = None,
        optimizer: Values = None,
        monitor: Values = None,
        passes: Values = 1,
    ) -> None:
        """Add one step, or several at once (sequences of one length).

        Args:
            step: from the start of the step's first batch to the end of its last, seconds.
            data_wait: waiting for batches, seconds.
            forward: forward passes of the step together, seconds.
            backward: backward passes of the step together, seconds.
            optimizer: optimizer steps of the step together, seconds.
            monitor: spent in monitoring, seconds.
            passes: forward passes of the step.

        Raises:
            ValueError: a value is negative or infinite.
        """
        self._update_events(
            None,
            step=step,
            data_wait=data_wait,
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            monitor=monitor,
            passes=passes,
        )

    @staticmethod
    def columns(events: Array) -> Array:
        """See `LayeredMetric.columns`."""
        step, data_wait, forward, backward, optimizer, monitor, passes = events.T[:7]
        # only passes that were timed may stand below the line
        timed = np.where(np.isnan(forward), np.nan, passes)
        return np.stack(
            (passes, timed, step, data_wait, forward, backward, optimizer, monitor), axis=1
        )

    @staticmethod
    def timed(events: Array) -> Sequence[tuple[Array, Array | None]]:
        """See `LayeredMetric.timed`."""
        step, data_wait, forward, backward, optimizer = events.T[:5]
        passes = events[:, 6]
        per_pass = forward / np.maximum(passes, 1.0)
        return [
            (step, None),
            (data_wait, None),
            (per_pass, np.nan_to_num(passes)),
            (backward, None),
            (optimizer, None),
        ]
