"""How much goes through."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Values

_RATES = {
    "throughput": ("samples", "sample_seconds"),
    "tokens_per_second": ("tokens", "token_seconds"),
}


class ThroughputMetric(LayeredMetric):
    """Samples and tokens per wall second.

    Over ranks the rates add: two ranks of 100 samples/s make 200 samples/s, however long each took.

    >>> metric = ThroughputMetric()
    >>> metric.update(samples=16, tokens=2048, step=0.09, data_wait=0.01)
    >>> round(float(metric.compute()["throughput"]), 3)
    160.0
    """

    component = "throughput"
    rank_reduction = None  # states of all ranks are kept apart: rates add, times do not

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

    def compute(self) -> dict[str, Tensor]:
        """See `LayeredMetric.compute`; after a sync, rates are sums of the ranks' rates."""
        if self.counts.ndim == 2:
            return super().compute()
        ranks = [self._of_rank(rank) for rank in range(len(self.counts))]
        total = ThroughputMetric(self.layers)
        for rank in ranks:
            total.merge_ranks(rank)
        out = total.compute()
        for name in _RATES:
            rates = [float(rank.compute()[name]) for rank in ranks]
            given = [rate for rate in rates if not math.isnan(rate)]
            out[name] = torch.tensor(sum(given) if given else math.nan, dtype=torch.float64)
        return out

    def _of_rank(self, rank: int) -> ThroughputMetric:
        metric = ThroughputMetric(self.layers)
        for name in ("counts", "sums", "samples"):
            state: Any = getattr(self, name)[rank]
            setattr(metric, name, state.clone())
        metric._update_count = 1
        return metric
