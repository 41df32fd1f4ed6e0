"""What the monitor costs, by part, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cmr_monitor_callbacks.packed import ROW
from cmr_monitor_callbacks.sampling import Sampling
from cmr_monitor_callbacks.snapshot import Snapshot


def overhead_of(
    snapshot: Snapshot, sampling: Sampling, seconds: Mapping[str, float], rank: int = 0
) -> dict[str, Any]:
    """The overhead as plain data; JSON can hold it.

    Args:
        snapshot: the newest of training.
        sampling: which steps are looked at closely.
        seconds: by part, what the monitor knows beside the snapshot.
        rank: whose hooks are meant.

    Returns:
        ``fraction`` of the last window (None: not known), ``budget``, ``adaptive``,
        ``sample_every``, and ``seconds`` by part: ``hooks`` and what is given.

    >>> overhead_of(Snapshot.empty("train"), Sampling(10), {"window_end": 0.5})["seconds"]
    {'hooks': 0.0, 'window_end': 0.5}
    """
    alone = snapshot.run_by_rank is None
    packed = snapshot.statistics if snapshot.run_by_rank is None else snapshot.run_by_rank
    hooks = float(packed.values[ROW["monitor_seconds"], 0 if alone else 1 + rank])
    fraction = snapshot.value("overhead_fraction")
    return {
        "fraction": None if math.isnan(fraction) else fraction,
        "budget": sampling.budget,
        "adaptive": sampling.adaptive,
        "sample_every": sampling.every,
        "seconds": {"hooks": hooks, **seconds},
    }
