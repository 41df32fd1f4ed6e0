"""What went wrong in the model's memory."""

from __future__ import annotations

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Layers, Values


class ErrorMetric(LayeredMetric):
    """Errors, and their share of the operations that could have failed.

    >>> metric = ErrorMetric()
    >>> metric.update(4, errors=1, operations=50)
    >>> metric.update(6, errors=0, operations=50)
    >>> float(metric.compute()["error_rate"])
    0.01
    """

    component = "errors"

    def update(
        self,
        layer: Layers,
        errors: Values = 1,
        operations: Values = None,
        nonfinite: Values = None,
    ) -> None:
        """Add errors of one layer, or of several at once (sequences of one length).

        Args:
            layer: id of the layer, None for the model as a whole, or one for each.
            errors: errors that occurred.
            operations: captures, reconstructions, retrievals and forward passes that were run.
            nonfinite: samples rejected because they were not finite.

        Raises:
            ValueError: a value is negative or infinite.
        """
        self._update_events(layer, errors=errors, operations=operations, nonfinite=nonfinite)
