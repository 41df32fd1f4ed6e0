"""What is looked up in the buffer."""

from __future__ import annotations

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Layers, Values


class RetrievalMetric(LayeredMetric):
    """Retrieval operations, cache hits, entries given back, quality and time.

    >>> metric = RetrievalMetric()
    >>> metric.update(4, requested=200, returned=1600, hits=160, seconds=0.4)
    >>> values = metric.compute()
    >>> float(values["cache_hit_rate"]), float(values["avg_retrieval_time"])
    (0.8, 0.002)
    """

    component = "retrieval"

    def update(
        self,
        layer: Layers,
        requested: Values = None,
        returned: Values = None,
        hits: Values = None,
        seconds: Values = None,
        quality: Values = None,
    ) -> None:
        """Add one call of the retrieval, or several at once (sequences of one length).

        Args:
            layer: id of the layer, None for the model as a whole, or one for each call.
            requested: operations in the call.
            returned: entries given back.
            hits: operations answered from a cache; None where there is none.
            seconds: duration of the call, over all its operations.
            quality: as the model judges it, in 0..1.

        Raises:
            ValueError: a value is negative or infinite, or quality is over 1.
        """
        self._update_events(
            layer,
            requested=requested,
            returned=returned,
            hits=hits,
            seconds=seconds,
            quality=quality,
        )
