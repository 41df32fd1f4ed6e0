"""Values that were not taken because they were not finite, counted by what they belong to."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import METRICS, NONFINITE, RECORDS, STATISTICS, Kind
from cmr_monitor_callbacks.events import FIELD_OF_ROW
from cmr_monitor_callbacks.packed import ROW, Packed

Array = NDArray[np.float64]
ROW_OF: Final[dict[tuple[str, str], int]] = {key: ROW[name] for key, name in NONFINITE.items()}
"""Row that counts the rejected values of a component's field, or of a statistic."""


def _fields() -> dict[str, str]:
    """Counting statistic of each statistic that comes from a field."""
    found = {}
    for kind, fields in FIELD_OF_ROW.items():
        names = [s.name for s in STATISTICS if s.component == kind]
        for name, field in zip(names, fields, strict=True):
            if field is not None:
                found[name] = NONFINITE[kind, RECORDS[kind][field]]
                ROW_OF[kind, name] = ROW[found[name]]
    found["reconstruction_similarity_sum"] = NONFINITE["similarity", "similarity"]
    ROW_OF["similarity", "reconstruction_similarity_sum"] = ROW[
        NONFINITE["similarity", "similarity"]
    ]
    found["outputs_nonfinite"] = found["output_entropy_sum"] = "outputs_nonfinite"
    return found


def _rows_by_metric() -> list[list[int]]:
    of, rows = _fields(), []
    for metric in METRICS:
        parts = [*metric.numerator.split("-"), metric.denominator.lstrip("#")]
        named = (
            {of[part] for part in parts if part in of} if metric.kind is not Kind.QUANTILE else ()
        )
        rows.append([ROW[name] for name in named])
    return rows


_BY_METRIC: Final = _rows_by_metric()
CAN_BE: Final = frozenset(m.name for m, rows in zip(METRICS, _BY_METRIC, strict=True) if rows)
"""Metrics whose values may be not finite; the others are counted or timed by the monitor."""
_ALL: Final = sorted({row for rows in _BY_METRIC for row in rows})


def nonfinite_counts(window: Packed, table: Array) -> Array:
    """How many values of each metric were not finite in a window.

    Args:
        window: its statistics.
        table: shape ``(metrics, width)``: its metrics.

    Returns:
        shape ``(metrics, width)``; 0 where all that came was finite, NaN where nothing came.
        Column 0 is the whole.
    """
    out: Array = np.where(np.isnan(table), np.nan, 0.0)
    if not window.values[_ALL].any():
        return out
    values = window.values.copy()
    values[:, 0] = values.sum(axis=1)
    for metric, rows in enumerate(_BY_METRIC):
        if rows:
            counts = values[rows].sum(axis=0)
            out[metric] = np.where(counts > 0, counts, out[metric])
    return out
