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
    packed, column = snapshot.statistics, 0
    by_rank = snapshot.run_by_rank
    if by_rank is not None and 1 + rank < by_rank.width:  # else a resumed run of fewer ranks
        packed, column = by_rank, 1 + rank
    hooks = float(packed.values[ROW["monitor_seconds"], column])
    fraction = snapshot.value("overhead_fraction")
    return {
        "fraction": None if math.isnan(fraction) else fraction,
        "budget": sampling.budget,
        "adaptive": sampling.adaptive,
        "sample_every": sampling.every,
        "seconds": {"hooks": hooks, **seconds},
    }
