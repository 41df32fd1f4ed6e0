"""Runs for tests of reports: with all that a report can tell, and with names that break out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cmr_monitor_callbacks import Severity
from cmr_monitor_callbacks.catalogue import BY_NAME, HEALTH_COMPONENTS
from cmr_monitor_callbacks.failures import ErrorRecord
from cmr_monitor_callbacks.health import Phase, Transition
from cmr_monitor_callbacks.history import HistoryStore
from cmr_monitor_callbacks.layers import LayerId
from tests.histories import START, snapshot, store, transition

HOSTILE = (
    "=</script><script>document.title='broken'</script>"
    "<img src=x onerror=\"document.title='broken'\">"
    "|a\\|b `c` *d* __init__ [e](http://f) ]]> &amp; <b>\nline ${x} %{y} =1+1"
)
"""A text that breaks out of what does not escape it."""


def own(step: int, last: int) -> dict[str, float]:
    """What the monitor says of itself: health falls in the second half."""
    status = 1.0 if step < last / 2 else 2.0 if step < 0.8 * last else 3.0
    given = {f"{name}_status": 1.0 for name in HEALTH_COMPONENTS}
    given |= dict.fromkeys(HEALTH_COMPONENTS, 100.0)
    given |= {"capture_status": status, "capture": 100.0 - 30 * (status - 1)}
    return given | {"status": status, "score": 100.0 - 25 * (status - 1), "events": float(step)}


def values_at(
    window: int, step: int, layers: Sequence[LayerId], rng: np.random.Generator, windows: int
) -> dict[tuple[str, LayerId | None] | str, float]:
    """A window of a run whose memory refuses more and more, and whose steps get slower."""
    done = window / max(windows - 1, 1)
    values: dict[tuple[str, LayerId | None] | str, float] = {
        "step_time": 0.1 + 0.05 * done + 0.002 * rng.random(),
        "data_wait": 0.01 + 0.001 * rng.random(),
        "avg_forward_time": 0.04,
        "backward_time": 0.03,
        "avg_latency": 0.025,
        "throughput": 150 - 40 * done + rng.random(),
        "error_rate": 0.001 * rng.random(),
        "error_count": window // 10,
        "storage_efficiency": 0.9 - 0.5 * done,
        "utilization_rate": min(1.0, 3 * done),
        "states_captured": 20.0 * (step + 1),
        "retrieval_time_p50": 0.002,
        "retrieval_time_p95": 0.004,
        "retrieval_time_p99": 0.005 + 0.001 * rng.random(),
        "capture_calls": 2.0 * (step + 1),
        "avg_capture_time": 0.003,
    }
    for i, layer in enumerate(layers):
        values["storage_efficiency", layer] = max(0.05, 0.9 - 0.5 * done - 0.05 * (i % 7))
        values["utilization_rate", layer] = min(1.0, 0.2 + 3 * done * (i + 1) / len(layers))
        values["eviction_count", layer] = float((i + 1) * (step + 1) // 3)
        values["total_reconstructions", layer] = float((step + 1) * (i % 5))
        values["avg_reconstruction_time", layer] = 0.001 * (1 + i) + 0.0002 * rng.random()
        values["avg_capture_time", layer] = 0.001 * (1 + i)
    return values


def filled(
    path: Path | None,
    windows: int = 60,
    layers: Sequence[LayerId] = (2, 4, 6),
    *,
    every: int = 5,
    text: str = "a bad state",
    gaps: bool = False,
    eventful: bool = True,
    **info: object,
) -> HistoryStore:
    """A store of a run with alerts, errors, marks, health and resources.

    Args:
        path: of the file; None: in memory.
        windows: of training.
        layers: of the model.
        every: steps of a window.
        text: messages, names of rules and labels.
        gaps: whether every third window has no data but the step's time.
        eventful: whether anything happened.
        info: of the run.
    """
    rng = np.random.default_rng(1)
    opened = store(path, **({"host": "node-1", "versions": {"torch": "2.13"}} | info))
    last = windows * every - 1
    for window in range(windows):
        step = (window + 1) * every - 1
        values: Mapping[tuple[str, LayerId | None] | str, float]
        values = values_at(window, step, layers, rng, windows)
        if gaps and window % 3 == 2:
            values = {"step_time": values["step_time"], "error_rate": math.nan}
        opened.window(snapshot(step, values, layers=layers, own=own(step, last)))
        opened.tidy(START)
    if eventful:
        happened(opened, last, layers, text)
    return opened


def happened(opened: HistoryStore, last: int, layers: Sequence[LayerId], text: str) -> None:
    """Alerts, errors, marks, changes of health and samples of resources."""
    half = last // 2
    of = layers[0] if layers else None
    alerts: list[Transition] = [
        transition(text, half, Phase.PENDING, layer=of),
        transition(text, half + 5, Phase.FIRING, Phase.PENDING, layer=of),
        transition("slow", half, Phase.FIRING, severity=Severity.ERROR),
        transition("slow", half + 20, Phase.INACTIVE, Phase.FIRING),
        transition("waits", half + 10, Phase.PENDING),
    ]
    told = [dataclasses.replace(t, message=f"{t.state.rule}: {text}") for t in alerts]
    changes = [("capture", "healthy", "warning", half, START + half)]
    opened.alerts(told, [*changes, ("", "healthy", "critical", last, START + last)])
    for step in (half, half + 3):
        opened.errors(
            [
                ErrorRecord(
                    "model", "model", of, "KeyError", text, "Traceback", step, 2, 0, START + step
                ),
                ErrorRecord(
                    "monitor", "events", None, "OSError", text, "", step, time=START + step
                ),
            ]
        )
    opened.mark(text, half, START + half)
    keep_diagnostics(opened, last, [finding("dead_layer", "error", text, of), finding()])
    for step in range(10, last, 10):
        values = {"memory_size_mb": float(step)}
        opened.window(snapshot(step, values, stage="resources"))


def finding(
    name: str = "duplicate_entries",
    severity: str = "warning",
    text: str = "most are alike",
    layer: LayerId | None = None,
) -> dict[str, object]:
    """A finding, as `run_diagnostics` gives it."""
    return {
        "name": name,
        "severity": severity,
        "component": "buffer",
        "layer": layer,
        "sentence": text,
        "evidence": {"share": 0.9},
        "advice": f"look at {text}",
    }


def keep_diagnostics(
    opened: HistoryStore, step: int, findings: Sequence[Mapping[str, object]], unknown: str = "ages"
) -> None:
    """What diagnostics found at a step, the worst first."""
    found = {"step": step, "time": START + step, "status": "warning" if findings else "healthy"}
    parts = {"findings": list(findings), "not_available": [unknown], "memory_analysis": {}}
    opened.diagnostics(found, json.dumps(found | parts))


def counts(name: str) -> bool:
    """Whether a metric counts over the run."""
    return BY_NAME[name].kind.value == "counter"
