"""Where a step's time goes."""

from __future__ import annotations

from cmr_monitor_callbacks.metrics.base import Values
from cmr_monitor_callbacks.metrics.per_rank import PerRankMetric


class LatencyMetric(PerRankMetric):
    """Step, data-wait, forward, backward, optimizer and monitor time, in seconds.

    Over ranks, ``total_forward_time`` is the slowest rank's.

    >>> metric = LatencyMetric()
    >>> metric.update(step=0.12, data_wait=0.01, forward=0.05, backward=0.06, optimizer=0.01)
    >>> metric.update(step=0.14, data_wait=0.01, forward=0.05, backward=0.08, optimizer=0.01)
    >>> values = metric.compute()
    >>> round(float(values["step_time"]), 3), round(float(values["avg_latency"]), 3)
    (0.13, 0.05)
    """

    component = "timing"
    over_ranks = {"total_forward_time": max}  # noqa: RUF012

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
