"""The monitor's numbers of itself: how much it records, how long storing takes, what it lost."""

from __future__ import annotations

import math
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cmr_monitor_callbacks import (
    CMRPerformanceMonitor,
    CMRProbe,
    InMemorySink,
    Notice,
    RunHistory,
)
from cmr_monitor_callbacks.alerts import delivery
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.history import schema
from cmr_monitor_callbacks.history import writer as writing

STRICT = {"on_monitor_error": "raise"}
NAMES = ("collection_rate", "storage_latency", "alert_rate", "dropped_events")
RULE = {
    "metric": "step_time",
    "condition": ">",
    "thresholds": {"warning": 1.5},
    "for": "0 steps",
    "warmup": False,
}


def loop(clock: ManualClock | None = None, **settings: Any) -> tuple[CMRPerformanceMonitor, Any]:
    model = nn.Linear(2, 2)
    model.probe = CMRProbe(4)
    config = {"log_every_n_steps": 2, **STRICT, **settings.pop("config", {})}
    given = {"alert_config": {"rules": {}, "alert_channels": []}, **settings}
    monitor = CMRPerformanceMonitor(config, model=model, clock=clock, **given)
    return monitor, model.probe


def test_events_per_second_of_the_window() -> None:
    clock = ManualClock(100.0)
    monitor, probe = loop(clock)
    clock.advance(1000.0)  # building a model is no part of the first window
    rates = []
    for step in range(6):
        with monitor.track_performance():
            for _ in range(step):
                probe.capture(4, 3, 2)
            clock.advance(0.5)
        if step % 2:
            rates.append(monitor.snapshot.value("collection_rate"))
    # a step is an event too
    assert rates == [(2 + 0 + 1) / 1.0, (2 + 2 + 3) / 1.0, (2 + 4 + 5) / 1.0]
    monitor.enter_stage("val")
    for _ in range(10):
        probe.capture(4, 3, 2)
    clock.advance(2.0)
    monitor.leave_stage(5)
    for _ in range(2):
        with monitor.track_performance():
            clock.advance(0.5)
    # what validation recorded, and its time, are between two windows of training
    assert monitor.snapshot.value("collection_rate") == (10 + 2) / 3.0


def test_before_the_first_step_nothing_is_known() -> None:
    monitor, _ = loop()
    values = [monitor.snapshot.value(name) for name in NAMES]
    assert all(math.isnan(value) for value in values)


def test_a_resumed_run_begins_its_rate_anew_and_keeps_what_it_lost() -> None:
    clock = ManualClock()
    monitor, _ = loop(clock)
    for _ in range(2):
        with monitor.track_performance():
            clock.advance(1.0)
    state = monitor.state_dict()
    assert state["dropped_events"] == 0
    state["dropped_events"] = 7
    clock.advance(500.0)
    later, _ = loop(clock)
    later.load_state_dict(state)
    assert later.snapshot.value("dropped_events") == 7
    for _ in range(2):
        with later.track_performance():
            clock.advance(1.0)
    assert later.snapshot.value("collection_rate") == 1.0
    assert later.snapshot.value("dropped_events") == 7
    assert later.snapshot.value("dropped_events", over="window") == 0
    del state["dropped_events"]  # of a version that did not count it
    later.load_state_dict(state)
    assert later.snapshot.value("dropped_events") == 0


def test_storing_takes_what_the_writer_measured_and_is_no_data_without_a_history() -> None:
    monitor, _ = loop()
    sink = InMemorySink()
    monitor.sinks.append(sink)
    measured = []
    for step in range(6):
        if step % 2:
            measured.append(monitor._parts.keeper.latency)
        with monitor.track_performance():
            pass
    first, *rest = [report.snapshot.value("storage_latency") for report in sink.reports]
    assert math.isnan(first) and math.isnan(measured[0])
    assert rest == measured[1:] and all(0 < seconds < 60 for seconds in rest)
    with monitor.history as history:
        assert history.series("storage_latency").value.tolist()[1:] == rest
    monitor, _ = loop(history={"enabled": False})
    for _ in range(4):
        with monitor.track_performance():
            pass
    assert monitor.windows == 2 and math.isnan(monitor.snapshot.value("storage_latency"))


def test_notices_per_minute_over_five_of_them() -> None:
    clock, told = ManualClock(1e6), []
    page = {"type": "callback", "function": told.append}
    alerts = {
        "rules": {"slow": RULE},
        "alert_channels": ["page"],
        "channels": {"page": page},
        "alert_cooldown": 0,
        "escalation_rules": {},
    }
    monitor, _ = loop(clock, alert_config=alerts, config={"log_every_n_steps": 1})
    rates = {}
    for seconds in (1.0, 2.0, 1.0, 2.0, 1.0, 1.0, 120.0, 1.0, 120.0, 1.0, 400.0, 1.0):
        with monitor.track_performance():
            clock.advance(seconds)
        rates[clock.wall()] = monitor.snapshot.value("alert_rate")
    assert monitor.alerts.delivery.flush(60.0)
    times = [notice.time for notice in told]
    assert len(times) > 5
    # what a window's rules raise is in the next window's rate
    expected = {now: sum(now - 300 < time < now for time in times) / 5 for now in rates}
    assert rates == expected and len({*rates.values()}) > 3 and 0.0 in [*rates.values()][-2:]
    monitor.alerts.delivery.close()


class _Hangs:
    """A channel that a test holds up."""

    def __init__(self) -> None:
        self.goes_on, self.begun = threading.Event(), threading.Event()

    def __call__(self, notice: Notice) -> None:
        self.begun.set()
        assert self.goes_on.wait(60.0)


def test_notices_that_too_many_others_kept_away_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "_LOCAL_QUEUE", 3)
    channel, clock = _Hangs(), ManualClock(1e6)
    alerts = {
        "rules": {"slow": RULE},
        "alert_channels": ["page"],
        "channels": {"page": {"type": "callback", "function": channel}},
        "alert_cooldown": 0,
        "escalation_rules": {},
    }
    config = {"log_every_n_steps": 1, "on_monitor_error": "log"}
    monitor, _ = loop(clock, alert_config=alerts, config=config)

    def steps(count: int) -> None:
        for _ in range(count):
            with monitor.track_performance():
                clock.advance(2.0 if monitor.current_step % 2 else 1.0)

    steps(2)
    steps(1)
    assert channel.begun.wait(60.0)  # it holds the first
    steps(8)
    channel.goes_on.set()
    assert monitor.alerts.delivery.flush(60.0)
    counts = monitor.alerts.delivery.counts["page"]
    assert counts["sent"] + counts["lost"] == monitor.alerts._told and counts["lost"] > 0
    steps(1)
    assert monitor.snapshot.value("dropped_events") == counts["lost"]
    monitor.alerts.delivery.close()
    monitor.reset_metrics()
    steps(1)
    assert monitor.snapshot.value("dropped_events") == 0


def test_windows_that_a_full_queue_lost_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PENDING", 5)
    monkeypatch.setattr(schema, "BUSY", 0.05)
    monkeypatch.setattr(writing, "_FIRST_PAUSE", 3600.0)
    path = tmp_path / "history.sqlite"
    config = {"log_every_n_steps": 1, "on_monitor_error": "log"}
    monitor, _ = loop(config=config, history={"file": str(path)})
    sink = InMemorySink()
    monitor.sinks.append(sink)
    with monitor.track_performance():
        pass
    monitor.flush_history()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(12):
        with monitor.track_performance():
            pass
    monitor.settle()
    lost = monitor._parts.keeper.lost
    assert lost >= 12 - 5 - 1  # one may be in the writer's hands
    other.execute("ROLLBACK")
    other.close()
    monitor.flush_history()
    with monitor.track_performance():
        pass
    assert monitor.snapshot.value("dropped_events") == lost == monitor._parts.keeper.lost
    assert sink.reports[-1].snapshot.value("dropped_events") == lost
    monitor.close_history("completed")
    with RunHistory(path) as history:
        found = history.series("dropped_events").value.tolist()
        assert (found[0], found[-1]) == (0.0, lost)
        errors = " ".join(str(error) for error in history.errors())
    assert "too many wait to be written" in errors


def test_what_an_earlier_file_lost_stays_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CLOSE", 0.5)
    blocked = tmp_path / "file"
    blocked.write_text("where a folder should be")
    config = {"log_every_n_steps": 1, "on_monitor_error": "log"}
    history = {"file": str(blocked / "history.sqlite")}
    monitor, _ = loop(config=config, history=history)
    for _ in range(3):
        with monitor.track_performance():
            pass
    monitor.close_history("ended")
    lost = monitor._parts.keeper.lost
    assert lost >= 3
    with monitor.track_performance():
        pass
    assert monitor.snapshot.value("dropped_events") == lost
    assert monitor.get_stats()["step"] == 3


def test_judging_rules_is_a_part_of_a_windows_end() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1})
    for _ in range(3):
        with monitor.track_performance():
            pass
    spent = monitor.overhead()["seconds"]
    assert 0 < spent["rules"] < spent["window_end"]
    monitor.reset_metrics()
    assert monitor.overhead()["seconds"]["rules"] == 0


def test_windows_end_where_they_should_after_going_back() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 10})
    for step in range(95, 105):
        monitor.step(step)
    monitor.current_step = 4
    ends = []
    for step in range(5, 32):
        monitor.step(step)
        if monitor.snapshot.step == step:
            ends.append(step)
    assert ends == [9, 19, 29]
