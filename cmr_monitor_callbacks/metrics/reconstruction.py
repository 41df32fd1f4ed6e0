"""What is read back into the computation."""

from __future__ import annotations

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Layers, Values


class ReconstructionMetric(LayeredMetric):
    """Reconstruction calls, the memories they used, their quality and their time.

    >>> metric = ReconstructionMetric()
    >>> metric.update(4, memories_used=8, quality=0.9, seconds=0.003)
    >>> metric.update(4, memories_used=0, seconds=0.002)
    >>> values = metric.compute()
    >>> int(values["reconstruction_calls"]), int(values["total_reconstructions"])
    (2, 1)
    >>> round(float(values["avg_reconstruction_time"]), 4)
    0.0025
    """

    component = "reconstruction"

    def update(
        self,
        layer: Layers,
        memories_used: Values = None,
        quality: Values = None,
        seconds: Values = None,
    ) -> None:
        """Add one call of the reconstruction, or several at once (sequences of one length).

        Args:
            layer: id of the layer, None for the model as a whole, or one for each call.
            memories_used: memories that the call read; 0: it did nothing.
            quality: as the model judges it, in 0..1.
            seconds: duration of the call.

        Raises:
            ValueError: a value is negative or infinite, or quality is over 1.
        """
        self._update_events(layer, memories_used=memories_used, quality=quality, seconds=seconds)
