"""What the buffer holds and drops."""

from __future__ import annotations

import math

import numpy as np

from cmr_monitor_callbacks.metrics.base import LayeredMetric, Layers, Values, _as_array, _as_list


class BufferMetric(LayeredMetric):
    """Entries, capacity, size in memory, and what was evicted, cleared and loaded.

    Gauges given for the whole model (``layer=None``) are a total limit and totals; they take part
    as METRICS says: entries and bytes only where no layer gives its own, the capacity as an upper
    bound of the sum of the layers' limits.

    >>> metric = BufferMetric()
    >>> metric.update(None, capacity=2000)
    >>> metric.update(4, entries=500, capacity=1000, evicted=20, stored=520)
    >>> metric.update(6, entries=1000, capacity=1000, evicted=30, stored=1030)
    >>> values = metric.compute()
    >>> float(values["utilization_rate"]), round(float(values["eviction_rate"]), 3)
    (0.75, 0.032)
    """

    component = "buffer"
    borrowed = ("states_stored",)

    def update(
        self,
        layer: Layers,
        entries: Values = None,
        capacity: Values = None,
        nbytes: Values = None,
        evicted: Values = None,
        cleared: Values = None,
        loaded: Values = None,
        *,
        stored: Values = None,
    ) -> None:
        """Add one look at the buffer, or several at once (sequences of one length).

        Args:
            layer: id of the layer, None for the model as a whole, or one for each look.
            entries: entries held now.
            capacity: entries that can be held at most.
            nbytes: payload of the entries held now, in bytes.
            evicted: entries dropped by policy since the last look.
            cleared: entries removed by an explicit clear since the last look.
            loaded: entries restored or imported since the last look.
            stored: entries taken in since the last look, for `eviction_rate`; needed only where no
                `CaptureMetric` stands beside this one.

        Raises:
            ValueError: a value is negative or infinite.
        """
        self._update_events(
            layer,
            entries=entries,
            capacity=capacity,
            nbytes=nbytes,
            evicted=evicted,
            cleared=cleared,
            loaded=loaded,
        )
        if stored is not None:
            self._add_stored(layer, stored)

    def _add_stored(self, layer: Layers, stored: Values) -> None:
        ids = _as_list(layer)
        given = _as_array("stored", stored)
        n = max(len(ids), len(given))
        row = self.statistics.index("states_stored")
        if len(given) not in (1, n) or len(ids) not in (1, n):
            raise ValueError(f"stored has {len(given)} values, layer {len(ids)}")
        ids = ids * n if len(ids) == 1 else ids
        for layer_id, value in zip(ids, np.broadcast_to(given, n).tolist(), strict=True):
            if not math.isnan(value):
                slot = self.layout.column(layer_id)
                self.counts[-1, slot] += int(value)  # the one borrowed row, after the own ones
                self.samples[row, slot] += 1
