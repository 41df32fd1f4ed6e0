"""Snapshots and stores made by hand, for tests of what is kept and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmr_monitor_callbacks import AlertState, HistoryConfig, Severity, Snapshot
from cmr_monitor_callbacks.catalogue import METRICS
from cmr_monitor_callbacks.health import Phase, Transition
from cmr_monitor_callbacks.history import HistoryStore, RunInfo
from cmr_monitor_callbacks.layers import LayerId
from cmr_monitor_callbacks.packed import COUNTERS, METRIC_ROW

START = 1_700_000_000.0
Values = Mapping[tuple[str, LayerId | None] | str, float]


def snapshot(
    step: int,
    values: Values,
    *,
    layers: Sequence[LayerId] = (),
    time: float | None = None,
    stage: str = "train",
    own: Mapping[str, float] | None = None,
) -> Snapshot:
    """A window with these numbers, by metric, or by metric and layer; all else is no data."""
    columns: dict[LayerId | None, int] = {None: 0}
    columns |= {layer: i + 1 for i, layer in enumerate(layers)}
    counters = np.full((len(COUNTERS), len(columns)), np.nan)
    window = np.full((len(METRICS), len(columns)), np.nan)
    for key, value in values.items():
        name, layer = (key, None) if isinstance(key, str) else key
        if name in COUNTERS:
            counters[COUNTERS.index(name), columns[layer]] = value
        else:
            window[METRIC_ROW[name], columns[layer]] = value
    return dataclasses.replace(
        Snapshot.empty(stage),
        step=step,
        time=START + step if time is None else time,
        layer_ids=tuple(layers),
        counters=counters,
        window=window,
        own=dict(own or {}),
    )


def store(path: Path | None, config: HistoryConfig | None = None, **info: object) -> HistoryStore:
    """A store that is open."""
    return HistoryStore(path, config or HistoryConfig(), RunInfo(**info), now=START)  # type: ignore[arg-type]


def end(open_store: HistoryStore, outcome: str = "completed") -> None:
    """End its session and close it."""
    open_store.end(START + 1e6, outcome)
    open_store.connection.close()


def transition(
    rule: str,
    step: int,
    phase: Phase,
    before: Phase = Phase.INACTIVE,
    *,
    layer: LayerId | None = None,
    severity: Severity | None = Severity.WARNING,
) -> Transition:
    """A change of an alert."""
    state = AlertState(
        rule,
        "storage_efficiency",
        layer,
        component="capture",
        phase=phase,
        severity=None if phase is Phase.INACTIVE else severity,
        value=0.25,
        threshold=0.5,
        message=f"{rule} <is> 25%",
    )
    return Transition(state, before, step, START + step, state.message, severity)


def filled_snapshot(step: int) -> Snapshot:
    """A window with some numbers."""
    return snapshot(step, {"step_time": step / 8, ("states_stored", 4): step}, layers=(4,))
