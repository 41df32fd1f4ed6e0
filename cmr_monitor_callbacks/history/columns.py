"""Which numbers of a snapshot are kept, and where they stand in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM, METRICS, OWN_METRICS, Kind
from cmr_monitor_callbacks.custom import Tracked
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW
from cmr_monitor_callbacks.resources import RESOURCES, Sample
from cmr_monitor_callbacks.resources.samples import SAMPLED
from cmr_monitor_callbacks.snapshot import Snapshot

Array = NDArray[np.float64]

BY_RANK: Final = (
    "step_time",
    "data_wait",
    "avg_forward_time",
    "backward_time",
    "optimizer_time",
    "monitor_time",
    "throughput",
    "utilization_rate",
    "total_entries",
    "error_rate",
)
"""Metrics that are kept for each rank."""
_OWN_BY_RANK: Final = (
    "straggler_ratio",
    "cpu_percent",
    "process_rss_mb",
    "host_memory_percent",
    "disk_free_mb",
    "gpu_utilization",
    "gpu_memory_percent",
    "gpu_temperature",
    "gpu_power",
    "gpu_throttled_share",
)
_OWN: Final = tuple(metric.name for metric in OWN_METRICS)
_NOTHING: Final = (math.nan,) * len(_OWN)
_NO_SAMPLES: Final = Tracked()


class SeriesKey(NamedTuple):
    """What tells series apart.

    Attributes:
        stage: ``train``, ``val``, ``test``, ``predict``.
        name: canonical name of a metric.
        layer: id of a layer; None: the model as a whole.
        rank: a rank; None: over all ranks.
    """

    stage: str
    name: str
    layer: LayerId | None = None
    rank: int | None = None


def row_of(key: SeriesKey) -> tuple[object, ...]:
    """A row of the table ``series``, without its id."""
    info = BY_NAME[key.name]
    over = "run" if info.kind is Kind.COUNTER else "window"
    layer = layer_text(key.layer)
    meaning = (over, info.kind.value, info.unit, info.polarity.value)
    return (key.stage, key.name, info.component, layer, key.rank, *meaning)


def layer_text(layer: LayerId | None) -> str | None:
    """A layer as the tables hold it: JSON tells 4 from "4".

    >>> layer_text(4), layer_text("4"), layer_text(None)
    ('4', '"4"', None)
    """
    return None if layer is None else json.dumps(layer)


def layer_from(text: str | None) -> LayerId | None:
    """The inverse of `layer_text`."""
    if text is None:
        return None
    layer: LayerId = json.loads(text)
    return layer


class Columns:
    """All numbers that a snapshot of one shape could have, in a fixed order.

    Counters are kept over the run, all else over the window, as the loggers have them.

    Args:
        snapshot: one of that shape: its stage, layers and ranks count.
        ranks_up_to: most ranks that are kept one by one.

    Attributes:
        keys: the series, in order.
        index: where their numbers are among those that `gathered` gives.

    >>> columns = Columns(Snapshot.empty("train"), 64)
    >>> len(columns.keys) == len(columns.values(Snapshot.empty("train")))
    True
    """

    def __init__(self, snapshot: Snapshot, ranks_up_to: int) -> None:
        layers: tuple[LayerId | None, ...] = (None, *snapshot.layer_ids)
        self.shape = shape_of(snapshot)
        self.keys: list[SeriesKey] = []
        index: list[int] = []
        for metric in METRICS:
            counted = metric.kind is Kind.COUNTER
            row = COUNTERS.index(metric.name) if counted else METRIC_ROW[metric.name]
            begin = (row if counted else len(COUNTERS) + row) * len(layers)
            index.extend(range(begin, begin + len(layers)))
            self.keys += [SeriesKey(snapshot.stage, metric.name, layer) for layer in layers]
        begin = (len(COUNTERS) + len(METRIC_ROW)) * len(layers)
        self.keys += [SeriesKey(snapshot.stage, name) for name in _OWN]
        self._custom = tuple(snapshot.custom_run)
        self.keys += [SeriesKey(snapshot.stage, CUSTOM + name) for name in self._custom]
        ranks = snapshot.world_size
        self._ranks = ranks if 1 < ranks <= ranks_up_to and snapshot.stage == "train" else 0
        self._rank_rows = [METRIC_ROW[name] for name in BY_RANK]
        for name in (*BY_RANK, *_OWN_BY_RANK):
            self.keys += [SeriesKey(snapshot.stage, name, rank=rank) for rank in range(self._ranks)]
        index.extend(range(begin, begin + len(self.keys) - len(index)))
        self.index = np.array(index, dtype=np.intp)

    def values(self, snapshot: Snapshot) -> Array:
        """The numbers in that order, shape ``(len(keys),)``; NaN is no data."""
        return self.gathered(snapshot).take(self.index)

    def gathered(self, snapshot: Snapshot) -> Array:
        """All numbers that a snapshot holds, in one row; ``index`` says where those kept are."""
        own = list(map(snapshot.own.get, _OWN, _NOTHING))
        own += [snapshot.custom.get(name, _NO_SAMPLES).mean for name in self._custom]
        parts: list[Any] = [snapshot.counters.ravel(), snapshot.window.ravel(), own]
        if self._ranks:
            parts.append(snapshot.table("window", "rank")[self._rank_rows, 1:].ravel())
            nothing = np.full(self._ranks, math.nan)
            parts += [snapshot.own_by_rank.get(name, nothing) for name in _OWN_BY_RANK]
        out: Array = np.concatenate(parts)
        return out


class AnyColumns(Protocol):
    """Numbers in a fixed order, of a window or of a sample."""

    index: NDArray[np.intp]

    @property
    def keys(self) -> Sequence[SeriesKey]:
        """The series; ``index`` says where they are in what is gathered."""
        ...


class SampleColumns:
    """All numbers that a sample of the machine could have, in a fixed order.

    >>> SampleColumns().keys[0].name
    'cpu_percent'
    """

    def __init__(self) -> None:
        self.keys = tuple(SeriesKey(RESOURCES, name) for name in SAMPLED)
        self.index = np.arange(len(self.keys))

    def gathered(self, sample: Sample) -> Array:
        """The numbers in that order, shape ``(len(keys),)``; NaN is no data."""
        return np.array([sample.values.get(name, math.nan) for name in SAMPLED])


Shape = tuple[str, tuple[LayerId, ...], int, tuple[str, ...]]


def shape_of(snapshot: Snapshot) -> Shape:
    """What makes two snapshots have the same numbers."""
    names = tuple(snapshot.custom_run)
    return snapshot.stage, snapshot.layer_ids, snapshot.world_size, names
