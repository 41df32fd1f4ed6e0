"""Which scalars are logged, under which tags: made from the catalogue once per layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmr_monitor_callbacks.catalogue import BY_NAME, CUSTOM, METRICS, OWN_METRICS, Kind
from cmr_monitor_callbacks.layers import LayerId, layer_order, layer_tag, matches
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW
from cmr_monitor_callbacks.ranks import standing_out
from cmr_monitor_callbacks.snapshot import Snapshot


class TagTable:
    """Tags and where their values stand in a snapshot's tables.

    Counters are logged over the run; ratios, averages and quantiles over the window.

    Args:
        stage: ``train``, or another stage, whose tags carry its name.
        layers: layers by column.
        layer_metrics: globs over the metrics logged for each layer; None: the catalogue's choice.
        whole_metrics: the same for the model as a whole.
    """

    def __init__(
        self,
        stage: str,
        layers: Sequence[LayerId],
        layer_metrics: Sequence[str] | None = None,
        whole_metrics: Sequence[str] | None = None,
    ) -> None:
        prefix = "cmr" if stage == "train" else f"cmr_{stage}"
        width = len(layers) + 1
        columns = sorted(range(len(layers)), key=lambda i: layer_order(layers[i]))
        tags: list[str] = []
        index: list[int] = []
        self.whole_count = 0
        for per_layer in (False, True):
            for metric in METRICS:
                counted = metric.kind is Kind.COUNTER
                at = COUNTERS.index(metric.name) if counted else METRIC_ROW[metric.name]
                row = (at if counted else len(COUNTERS) + at) * width
                tag = f"{prefix}_{metric.component}/{metric.name}"
                if not per_layer and is_shown(metric.name, metric.whole_tag, whole_metrics):
                    tags.append(tag)
                    index.append(row)
                if per_layer and is_shown(metric.name, metric.layer_tag, layer_metrics):
                    tags.extend(f"{tag}/{layer_tag(layers[i])}" for i in columns)
                    index.extend(row + i + 1 for i in columns)
            self.whole_count = self.whole_count or len(tags)
        self.tags = np.array(tags, dtype=object)
        self._index = np.array(index, dtype=np.intp)
        self._own = [
            (f"{prefix}_{m.component}/{m.name}", m.name)
            for m in OWN_METRICS
            if is_shown(m.name, m.whole_tag, whole_metrics)
        ]
        self._globs = whole_metrics
        self._pattern = b"?"

    def scalars(self, snapshot: Snapshot) -> tuple[list[str], list[float], int]:
        """What to log of a snapshot.

        Returns:
            tags (the same list as long as the same numbers have data), values without NaN, and how
            many of the first are of the model as a whole.
        """
        values = np.concatenate((snapshot.counters.ravel(), snapshot.window.ravel()))[self._index]
        given = ~np.isnan(values)
        pattern = given.tobytes() + bytes(name in snapshot.own for _, name in self._own)
        pattern += "/".join(snapshot.custom).encode()
        if pattern != self._pattern:
            self._pattern = pattern
            self._present = [(tag, name) for tag, name in self._own if name in snapshot.own]
            self._given = np.flatnonzero(given)
            self._custom = [n for n in snapshot.custom if is_shown(CUSTOM + n, True, self._globs)]
            own_tags = [tag for tag, _ in self._present]
            own_tags += [BY_NAME[CUSTOM + name].tag for name in self._custom]
            self._shown = own_tags + self.tags[given].tolist()
            self._whole = len(own_tags) + int(given[: self.whole_count].sum())
        own = [snapshot.own[name] for _, name in self._present]
        own += [snapshot.custom[name].mean for name in self._custom]
        return self._shown, own + values[self._given].tolist(), self._whole


def rank_scalars(snapshot: Snapshot) -> tuple[list[str], list[float]]:
    """Tags and values of ranks that stand out from the others in the window; mostly none."""
    if snapshot.by_rank is None or snapshot.stage != "train":
        return [], []
    found = standing_out(snapshot.by_rank)
    return [f"cmr_timing/{name}/rank_{rank:03d}" for name, rank, _ in found], [
        value for _, _, value in found
    ]


def is_shown(name: str, by_default: bool, globs: Sequence[str] | None) -> bool:
    """Whether a metric is shown: by the globs where there are any, else by default."""
    if globs is None:
        return by_default
    return any(matches(glob, name) for glob in globs)
