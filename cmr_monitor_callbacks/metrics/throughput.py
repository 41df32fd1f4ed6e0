"""How much goes through."""

from __future__ import annotations

import math

from cmr_monitor_callbacks.metrics.base import Values
from cmr_monitor_callbacks.metrics.per_rank import PerRankMetric


class ThroughputMetric(PerRankMetric):
    """Samples and tokens per wall second.

    Over ranks the rates add: two ranks of 100 samples/s make 200 samples/s, however long each took.

    >>> metric = ThroughputMetric()
    >>> metric.update(samples=16, tokens=2048, step=0.09, data_wait=0.01)
    >>> round(float(metric.compute()["throughput"]), 3)
    160.0
    """

    component = "throughput"
    over_ranks = {"throughput": math.fsum, "tokens_per_second": math.fsum}  # noqa: RUF012

    def update(
        self,
        samples: Values = None,
        tokens: Values = None,
        step: Values = None,
        data_wait: Values = None,
    ) -> None:
        """Add one step, or several at once (sequences of one length).

        Args:
            samples: samples of the step.
            tokens: token positions of the step.
            step: duration of the step, seconds.
            data_wait: waiting for its batches, seconds.

        Raises:
            ValueError: a value is negative or infinite.
        """
        self._update_events(None, samples=samples, tokens=tokens, step=step, data_wait=data_wait)
