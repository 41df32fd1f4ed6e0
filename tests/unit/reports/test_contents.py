"""What a report says, against the windows that were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cmr_monitor_callbacks import CMRPerformanceMonitor, CMRProbe, RunHistory, Severity
from cmr_monitor_callbacks.health import Phase
from cmr_monitor_callbacks.history import HistoryStore
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.spans import alert_spans
from cmr_monitor_callbacks.reports.stretch import iso
from tests.histories import START, snapshot, store, transition
from tests.reported import filled


def test_numbers_are_those_of_the_windows() -> None:
    rng = np.random.default_rng(3)
    latency, entries = rng.random(50), rng.integers(1, 99, 50)
    stored = np.cumsum(rng.integers(0, 9, 50))
    latency[7:11] = np.nan
    opened = store(None)
    for i in range(50):
        values = {"avg_latency": latency[i], "total_entries": entries[i]}
        values |= {("states_stored", 4): stored[i], "states_stored": stored[i]}
        opened.window(snapshot(5 * i + 4, values, layers=(4,)))
    report = report_of(RunHistory(opened))
    known = latency[~np.isnan(latency)]
    told = report["metrics"]["avg_latency"]
    assert told["value"] == report["performance_metrics"]["avg_latency"]
    assert told["value"] == pytest.approx(known.mean(), rel=1e-14)
    assert (told["min"], told["max"], told["last"]) == (known.min(), known.max(), latency[-1])
    assert told["p50"] == pytest.approx(np.median(known)) and told["unit"] == "s"
    assert told["p95"] == pytest.approx(np.quantile(known, 0.95))
    assert report["metrics"]["total_entries"]["value"] == entries[-1]
    assert report["metrics"]["states_stored"]["value"] == stored[-1]
    assert report["metrics"]["states_stored"]["total"] == stored[-1]
    assert report["layers"] == {"4": {"states_stored": stored[-1]}}
    assert report["range"] == {
        "from": iso(START + 4),
        "to": iso(START + 249),
        "first_step": 4,
        "last_step": 249,
        "windows": 50,
    }


def test_counters_of_a_range_are_what_it_added() -> None:
    opened = store(None)
    for i in range(20):
        opened.window(snapshot(5 * i + 4, {"states_stored": 10.0 * i + 7, "step_time": 0.1}))
    report = report_of(RunHistory(opened), "50s")  # from step 49 to 99
    assert (report["range"]["first_step"], report["range"]["windows"]) == (49, 11)
    told = report["metrics"]["states_stored"]
    assert (told["value"], told["total"]) == (100.0, 197.0), (
        "what the first window added is unknown"
    )


def test_a_layer_that_appears_late_has_all_its_counts() -> None:
    opened = store(None)
    for i in range(10):
        values = {"states_stored": i + 1.0} | ({("states_stored", 9): i + 1.0} if i >= 4 else {})
        opened.window(snapshot(i, values, layers=(9,) if i >= 4 else ()))
    report = report_of(RunHistory(opened))
    assert report["layers"]["9"]["states_stored"] == 10.0


def test_counts_of_a_long_run_are_whole_although_it_is_read_in_summaries(tmp_path: Path) -> None:
    opened = store(tmp_path / "history.sqlite")
    for i in range(5500):
        opened.window(snapshot(2 * i + 1, {"states_stored": 3.0 * (i + 1), "step_time": 0.1}))
        opened.tidy(START)
    with RunHistory(tmp_path) as history:
        assert history.series("step_time", max_points=2000).count.max() == 10
        report = report_of(history)
    assert report["metrics"]["states_stored"]["value"] == 16500.0
    assert (report["range"]["windows"], report["range"]["first_step"]) == (5500, 1)


def test_a_run_resumed_elsewhere_has_not_added_what_it_began_with() -> None:
    opened = store(None)
    for i in range(5):
        opened.window(snapshot(10_004 + 5 * i, {"states_stored": 5000.0 + i}))
    assert report_of(RunHistory(opened))["metrics"]["states_stored"]["value"] == 4.0


def test_windows_are_counted_where_some_number_has_gaps() -> None:
    opened = store(None)
    for i in range(10):
        some = {"states_considered": 1.0} if i < 3 else {}
        opened.window(snapshot(i, {"step_time": 0.1} | some))
    assert report_of(RunHistory(opened))["range"]["windows"] == 10


def test_layers_of_two_kinds_with_one_text_stay_apart() -> None:
    opened = store(None)
    values = {("total_entries", 4): 1.0, ("total_entries", "4"): 2.0}
    opened.window(snapshot(0, values, layers=("4", 4)))
    layers = report_of(RunHistory(opened))["layers"]
    assert layers == {"4": {"total_entries": 1.0}, '"4"': {"total_entries": 2.0}}


def test_what_happened_is_told() -> None:
    report = report_of(RunHistory(filled(None, 60)))
    assert [row["rule"] for row in report["alerts"]["firing"]] == ["a bad state"]
    assert report["alerts"]["firing"][0]["layer"] == 2
    assert [row["rule"] for row in report["alerts"]["pending"]] == ["waits"]
    assert report["alerts"]["fired"] == {"a bad state": 1, "slow": 1}
    assert [error["count"] for error in report["errors"]] == [4, 2]
    assert report["errors"][0]["over_time"] == [[149, 2], [152, 2]]
    assert report["marks"] == [{"step": 149, "time": iso(START + 149), "label": "a bad state"}]
    assert [c["component"] for c in report["health"]["changes"]] == ["capture", ""]
    trends = {trend["metric"]: trend["trend"] for trend in report["trends"]}
    assert trends["storage_efficiency"] == trends["step_time"] == "worsening"
    assert trends["utilization_rate"] == "rising" and "avg_latency" not in trends
    assert report["resources"]["memory_size_mb"] == {
        "mean": 150.0,
        "min": 10.0,
        "p50": 150.0,
        "p95": pytest.approx(276.0),  # of 10, 20, … 290
        "max": 290.0,
        "last": 290.0,
        "samples": 29,
        "unit": "MiB",
    }


def test_a_range_of_two_times_without_a_window() -> None:
    report = report_of(RunHistory(filled(None, 10)), (START + 1e6, START + 2e6))
    assert report["range"]["windows"] == 0 and report["metrics"] == {}
    assert report["alerts"]["transitions"] == [] == report["errors"]


@pytest.mark.parametrize("given", ["1h", "30m", "90s", 3600, 3600.0, np.float64(60), 1e-5, 1e17])
def test_ranges_that_can_be_read(given: str | float) -> None:
    assert report_of(RunHistory(filled(None, 5)), given)["range"]["windows"] > 0


def test_a_range_is_counted_from_the_newest_window() -> None:
    history = RunHistory(filled(None, 60, eventful=False))
    assert report_of(history, "1m")["range"]["windows"] == 13  # 239 to 299 s, every 5 s
    assert report_of(history, 60)["range"] == report_of(history, "1m")["range"]
    assert report_of(history, 0)["range"]["windows"] == 1
    assert report_of(history)["range"]["windows"] == 60


@pytest.mark.parametrize(
    "given",
    [
        "",
        "soon",
        "1 hour",
        "-1h",
        "5 steps",
        -1,
        -0.5,
        float("nan"),
        float("inf"),
        True,
        [1, 2],
        {},
    ],
)
def test_ranges_that_cannot_be_read_are_named(given: object) -> None:
    history = RunHistory(filled(None, 5))
    with pytest.raises(ValueError, match=r"time_range must be a duration such as '1h'") as caught:
        report_of(history, given)  # type: ignore[arg-type]
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [(1.0,), (2.0, 1.0), ("a", "b"), (1.0, float("nan")), (1, 2, 3)])
def test_two_times_are_checked(given: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be two times"):
        report_of(RunHistory(filled(None, 5)), given)


def test_a_monitor_says_when_the_report_was_made() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    probe = CMRProbe(3)
    monitor.attach(torch_model(probe))
    for _ in range(3):
        with monitor.track_performance():
            probe.capture(attempted=4, captured=4, stored=2, seconds=0.25)
    report = monitor.generate_report()
    assert report["timestamp"] >= report["range"]["to"]
    assert report["metrics"]["storage_efficiency"]["value"] == 0.5
    assert report["layers"]["3"]["states_stored"] == 6.0
    assert report["layers"]["3"]["avg_capture_time"] == 0.25
    with pytest.raises(ValueError, match="time_range must be"):
        monitor.generate_report("a while")


def torch_model(probe: CMRProbe) -> torch.nn.Module:
    model = torch.nn.Linear(1, 1)
    model.probe = probe
    return model


def spans_of(opened: HistoryStore, end: int) -> list[tuple[str, str, int, int, bool]]:
    found = alert_spans(RunHistory(opened).alerts(), end)
    return [(s.label, s.severity, s.begin, s.end, s.open) for s in found]


def test_stretches_of_an_alert_end_with_it_and_with_its_severity() -> None:
    opened = store(None)
    opened.alerts(
        [
            transition("r", 1, Phase.PENDING),
            transition("r", 2, Phase.FIRING, Phase.PENDING),
            transition("r", 4, Phase.FIRING, Phase.FIRING, severity=Severity.ERROR),
            transition("r", 6, Phase.RECOVERING, Phase.FIRING, severity=Severity.ERROR),
            transition("r", 8, Phase.INACTIVE, Phase.RECOVERING),
            transition("r", 9, Phase.FIRING, layer="a"),
        ],
        [],
    )
    assert spans_of(opened, 20) == [
        ("r", "warning", 2, 4, False),
        ("r", "error", 4, 8, False),
        ("r, layer a", "warning", 9, 20, True),
    ]
