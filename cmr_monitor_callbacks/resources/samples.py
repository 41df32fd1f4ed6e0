"""Samples to a window's numbers, and the ranks' windows to those of the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks import catalogue
from cmr_monitor_callbacks.catalogue import RESOURCE_NAMES, How

RESOURCES: Final = "resources"
"""The history's stage of samples, which no window holds."""
Numbers = tuple[float, ...]
"""A window's numbers of one rank, in the order of ``RESOURCE_NAMES``; NaN is no data."""
NOTHING: Final[Numbers] = (math.nan,) * len(RESOURCE_NAMES)
SAMPLED: Final = tuple(dict.fromkeys(resource.sample for resource in catalogue.RESOURCES))
"""Fields of a sample."""


@dataclass(frozen=True)
class Sample:
    """What the machine was like at one moment.

    Attributes:
        time: seconds since the Unix epoch.
        step: the step that was under way.
        values: by name, see `SAMPLED`; what is not known is left out.
    """

    time: float
    step: int
    values: Mapping[str, float]
    stage: ClassVar[str] = RESOURCES


def window_of(samples: Sequence[Sample]) -> Numbers:
    """A window's numbers.

    >>> samples = [Sample(0.0, 0, {"gpu_power": 100.0}), Sample(2.0, 5, {"gpu_power": 300.0})]
    >>> numbers = dict(zip(RESOURCE_NAMES, window_of(samples)))
    >>> numbers["gpu_power"], numbers["gpu_power_max"]
    (200.0, 300.0)
    """
    columns = {
        name: [sample.values[name] for sample in samples if name in sample.values]
        for name in SAMPLED
    }
    return tuple(
        _one(columns[resource.sample], resource.over_samples) for resource in catalogue.RESOURCES
    )


def by_rank(windows: Sequence[Numbers]) -> dict[str, NDArray[np.float64]]:
    """The ranks' numbers by name, shape ``(ranks,)``; what no rank knows is left out."""
    table = np.array(windows, dtype=np.float64).reshape(len(windows), len(RESOURCE_NAMES))
    columns = zip(RESOURCE_NAMES, table.T, strict=True)
    return {name: column for name, column in columns if not np.isnan(column).all()}


def whole_of(windows: Sequence[Numbers]) -> dict[str, float]:
    """The numbers of all ranks together, by name; what no rank knows is left out.

    >>> two = [window_of([Sample(0.0, 0, {"gpu_temperature": t})]) for t in (60.0, 70.0)]
    >>> whole_of(two)
    {'gpu_temperature': 65.0, 'gpu_temperature_max': 70.0}
    """
    out = {}
    for i, resource in enumerate(catalogue.RESOURCES):
        values = [window[i] for window in windows if window[i] == window[i]]
        if values:
            out[resource.metric.name] = _one(values, resource.over_ranks)
    return out


def _one(values: Iterable[float], how: How) -> float:
    given = list(values)
    if not given:
        return math.nan
    if how == "max":
        return max(given)
    if how == "min":
        return min(given)
    total = math.fsum(given)
    return total if how == "sum" else total / len(given)
