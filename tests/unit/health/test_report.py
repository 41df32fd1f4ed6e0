"""The score, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cmr_monitor_callbacks.health import (
    AlertState,
    HealthReport,
    HealthStatus,
    Phase,
    Severity,
    assess,
)
from cmr_monitor_callbacks.health.report import system_score
from cmr_monitor_callbacks.packed import METRIC_ROW, Packed, read_counters
from cmr_monitor_callbacks.snapshot import Snapshot

W, E, C = Severity.WARNING, Severity.ERROR, Severity.CRITICAL
METRIC = {
    "capture": "capture_efficiency",
    "reconstruction": "reconstruction_quality",
    "buffer": "utilization_rate",
    "retrieval": "cache_hit_rate",
    "timing": "step_time",
}
THREE = ("capture", "buffer", "retrieval")


def snapshot(*components: str) -> Snapshot:
    packed = Packed.empty(1)
    window = np.full((len(METRIC_ROW), 1), math.nan)
    for name in components:
        window[METRIC_ROW[METRIC[name]]] = 0.5
    return Snapshot("train", 0, 0.0, 1, (), packed, read_counters(packed), window)


def judged(
    known: tuple[str, ...], *alerts: tuple[str, Severity], phase: Phase = Phase.FIRING
) -> HealthReport:
    """Alerts by component; a name with a digit is a further rule of that component."""
    states = [
        AlertState(name, component=name.rstrip("0123456789"), phase=phase, severity=severity)
        for name, severity in alerts
    ]
    return assess(states, snapshot(*known))


def test_the_specifications_example() -> None:
    report = judged(THREE, ("buffer", W))
    assert round(report.score, 1) == 86.7
    assert report.score == pytest.approx(0.5 * 80 + 0.5 * 280 / 3)
    assert (report.status, report.status.color) == (HealthStatus.HEALTHY, "green")
    status = report.component_status()
    assert status["memory_buffer"] == "warning"
    assert status["retrieval_system"] == status["capture"] == "healthy"
    assert status["reconstruction"] == "unknown"
    assert not {"buffer", "retrieval"} & set(status)


@pytest.mark.parametrize(
    ("alerts", "component", "score", "status"),
    [
        ([], 100, 100, "healthy"),
        ([("buffer", E)], 50, 0.5 * 50 + 0.5 * 250 / 3, "warning"),
        ([("buffer", C)], 0, 0.5 * 0 + 0.5 * 200 / 3, "critical"),
        ([("buffer", W), ("buffer2", W)], 75, 0.5 * 75 + 0.5 * 275 / 3, "healthy"),
        ([("buffer", W), ("buffer2", E), ("buffer3", W)], 40, 20 + 0.5 * 240 / 3, "warning"),
        ([("buffer", C), ("buffer2", W)], 0, 0.5 * 200 / 3, "critical"),
        ([(n, W) for n in THREE], 80, 80, "healthy"),
        ([(n, W) for n in (*THREE, "buffer2")], 75, 37.5 + 0.5 * 235 / 3, "warning"),
        ([(n, E) for n in (*THREE, "buffer2")], 45, 22.5 + 0.5 * 145 / 3, "critical"),
    ],
)
def test_scores(
    alerts: list[tuple[str, Severity]], component: float, score: float, status: str
) -> None:
    report = judged(THREE, *alerts)
    assert report.components["buffer"].score == component
    assert report.score == pytest.approx(score)
    assert report.status.value == status
    assert 0 <= report.score <= 100


def test_error_on_one_of_many_is_a_warning_whatever_the_score() -> None:
    report = judged(tuple(METRIC), ("timing", E))
    assert report.score == pytest.approx(25 + 45)
    assert report.status is HealthStatus.WARNING


def test_one_rule_at_many_layers_counts_once() -> None:
    states = [
        AlertState("full", layer=i, component="buffer", phase=Phase.FIRING, severity=W)
        for i in range(5)
    ]
    report = assess(states, snapshot(*THREE))
    assert report.components["buffer"].score == 80
    assert len(report.firing) == 5


def test_pending_costs_nothing() -> None:
    report = judged(THREE, ("buffer", C), phase=Phase.PENDING)
    assert (report.score, report.firing, len(report.pending)) == (100, (), 1)


def test_the_floor_is_0() -> None:
    many = [(f"buffer{i}", E) for i in range(15)]
    assert judged(THREE, *many).components["buffer"].score == 0


def test_the_worst_comes_first() -> None:
    report = judged(THREE, ("capture", W), ("buffer", C), ("retrieval", E))
    assert [s.severity for s in report.firing] == [C, E, W]


def test_without_numbers_nothing_is_known() -> None:
    report = assess([], snapshot())
    assert (report.score, report.status.value, report.status.color) == (100, "unknown", "grey")
    assert set(report.component_status().values()) == {"unknown"}
    assert report.numbers() == {
        "score": 100,
        "status": 0,
        "alerts_firing": 0,
        "alerts_pending": 0,
    }
    assert system_score([]) == 100


def test_numbers() -> None:
    numbers = judged(THREE, ("buffer", C), ("capture", W)).numbers()
    assert numbers["buffer"] == 0
    assert (numbers["buffer_status"], numbers["capture_status"]) == (3, 2)
    assert (numbers["retrieval"], numbers["retrieval_status"]) == (100, 1)
    assert (numbers["status"], numbers["alerts_firing"]) == (3, 2)
    assert "timing" not in numbers


def test_the_last_report_stands_as_long_as_nothing_changes() -> None:
    first = assess([], snapshot(*THREE))
    assert assess([], snapshot(*THREE), first) is first
    more = assess([], snapshot(*THREE, "timing"), first)
    assert more.components["timing"].status is HealthStatus.HEALTHY
    firing = judged(THREE, ("buffer", W))
    assert assess([], snapshot(*THREE), firing).score == 100
