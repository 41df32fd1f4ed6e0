"""What the capture takes and the buffer keeps."""

from __future__ import annotations

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Layers, Values


class CaptureMetric(LayeredMetric):
    """States considered, attempted, captured and stored, and the time of a capture call.

    >>> metric = CaptureMetric()
    >>> metric.update(4, attempted=52, captured=50, stored=45, seconds=0.001)
    >>> metric.update(6, attempted=106, captured=100, stored=90, seconds=0.002)
    >>> values = metric.compute()
    >>> round(float(values["storage_efficiency"]), 2)
    0.9
    >>> int(values["states_stored/layer_06"])
    90
    """

    component = "capture"

    def update(
        self,
        layer: Layers,
        attempted: Values = None,
        captured: Values = None,
        stored: Values = None,
        seconds: Values = None,
        considered: Values = None,
    ) -> None:
        """Add one call of the capture, or several at once (sequences of one length).

        Args:
            layer: id of the layer, None for the model as a whole, or one for each call.
            attempted: states that the capture tried to take.
            captured: states taken.
            stored: states that the buffer took.
            seconds: duration of the call.
            considered: states scored for relevance.

        Raises:
            ValueError: a value is negative or infinite.
        """
        self._update_events(
            layer,
            attempted=attempted,
            captured=captured,
            stored=stored,
            seconds=seconds,
            considered=considered,
        )
