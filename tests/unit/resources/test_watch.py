"""The sampling thread: what it hands over, when it rests, and that it ends."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks import CMRPerformanceMonitor, ConfigError, ResourcesConfig
from cmr_monitor_callbacks.catalogue import RESOURCE_NAMES, RESOURCES
from cmr_monitor_callbacks.clock import ManualClock
from cmr_monitor_callbacks.config import parse
from cmr_monitor_callbacks.resources import Sample, by_rank, whole_of, window_of
from cmr_monitor_callbacks.resources.samples import NOTHING, SAMPLED
from cmr_monitor_callbacks.resources.watch import Readers, ResourceWatch

NAME = "cmr-monitor-resources"


class Given:
    """Readers that read what a test says."""

    def __init__(self, *values: dict[str, float] | Exception) -> None:
        self.values = list(values)
        self.forgotten = self.closed = 0
        self.read_in: list[int] = []
        self.enough = threading.Event()

    def read(self, now: float) -> dict[str, float]:
        self.read_in.append(threading.get_ident())
        value = self.values.pop(0) if self.values else {"cpu_percent": 1.0}
        self.enough.set()
        if isinstance(value, Exception):
            raise value
        return value

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed += 1


def watch(clock: ManualClock, **settings: Any) -> ResourceWatch:
    return ResourceWatch(ResourcesConfig(**settings), clock, lambda: 7)


def named(numbers: tuple[float, ...]) -> dict[str, float]:
    return {n: v for n, v in zip(RESOURCE_NAMES, numbers, strict=True) if v == v}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "resources.interval: must be longer than 0 s, got 0"),
        ({"interval": 0.05}, "resources.interval: must be at least 0.1 s, got 0.05"),
        (
            {"interval": "3 steps"},
            "must be a duration like '30s', '10m', '12h' or '2d', got '3 steps'",
        ),
        ({"gpus": True}, "resources.gpus is not a setting; did you mean 'gpu'"),
        ({"disks": [""]}, r"resources.disks: must be paths, got \[''\]"),
        ({"enabled": "perhaps"}, "resources.enabled must be true or false, got 'perhaps'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(ResourcesConfig, settings, "resources")


# Samples


def test_a_windows_numbers() -> None:
    clock = ManualClock(100.0)
    one, given = (
        watch(clock),
        Given(
            {"cpu_percent": 100.0, "disk_free_mb": 50.0, "gpu_throttled_share": 1.0},
            {"cpu_percent": 300.0, "disk_free_mb": 40.0, "gpu_throttled_share": 0.0},
            {"disk_free_mb": 45.0, "gpu_throttled_share": 0.0, "gpu_ecc_errors": 2.0},
            {"disk_free_mb": 44.0},
        ),
    )
    for _ in range(3):
        assert one.look(given)
        clock.advance(2.0)
    assert named(one.window()) == {
        "cpu_percent": 200.0,
        "cpu_percent_max": 300.0,
        "disk_free_mb": 40.0,
        "gpu_throttled_share": pytest.approx(1 / 3),
        "gpu_ecc_errors": 2.0,
    }
    samples = one.take_samples()
    assert [(s.time, s.step, s.stage) for s in samples] == [
        (100.0, 7, "resources"),
        (102.0, 7, "resources"),
        (104.0, 7, "resources"),
    ]
    assert samples[1].values["cpu_percent"] == 300.0
    assert one.take_samples() == []
    one.look(given)
    assert named(one.window()) == {"disk_free_mb": 44.0}


def test_the_newest_sample_stands_for_a_while() -> None:
    clock = ManualClock(100.0)
    one = watch(clock, interval=2.0)
    assert one.window() == NOTHING
    one.look(Given({"cpu_percent": 50.0}))
    for _ in range(4):
        assert named(one.window()) == {"cpu_percent": 50.0, "cpu_percent_max": 50.0}
        clock.advance(2.0)
    assert one.window() == NOTHING
    assert len(one.take_samples()) == 1


def test_numbers_of_ranks() -> None:
    first = window_of([Sample(0.0, 0, {"gpu_power": 100.0, "disk_free_mb": 9.0})])
    second = window_of([Sample(0.0, 0, {"gpu_power": 300.0, "gpu_ecc_errors": 1.0})])
    third = window_of([Sample(0.0, 0, {"gpu_power": 200.0, "gpu_ecc_errors": 2.0})])
    assert whole_of([first, second, third, NOTHING]) == {
        "disk_free_mb": 9.0,
        "gpu_power": 200.0,
        "gpu_power_max": 300.0,
        "gpu_ecc_errors": 3.0,
    }
    columns = by_rank([first, second, NOTHING])
    assert columns["gpu_power"][:2].tolist() == [100.0, 300.0]
    assert math.isnan(columns["gpu_power"][2])
    assert set(columns) == {"disk_free_mb", "gpu_power", "gpu_power_max", "gpu_ecc_errors"}
    assert whole_of([]) == whole_of([NOTHING]) == {}


def test_every_number_is_made_of_a_sample() -> None:
    assert {resource.sample for resource in RESOURCES} == set(SAMPLED) <= set(RESOURCE_NAMES)
    everything = dict.fromkeys(SAMPLED, 5.0)
    assert set(named(window_of([Sample(0.0, 0, everything)]))) == set(RESOURCE_NAMES)


# Rest


def test_it_rests_when_training_does() -> None:
    clock = ManualClock()
    one, given = watch(clock, rest_after=60.0), Given()
    assert one.look(given)  # before the first step: data are loaded, say
    clock.advance(59.0)
    assert one.look(given)
    clock.advance(2.0)
    assert not one.look(given)
    assert given.forgotten == 0
    clock.advance(600.0)
    one.beats += 1
    assert one.look(given)
    assert given.forgotten == 1  # what was used meanwhile is not the next sample's
    clock.advance(60.0)
    assert one.look(given)
    clock.advance(1.0)
    assert not one.look(given)
    assert len(given.read_in) == 4


def test_a_failure_is_told_and_the_next_sample_is_taken() -> None:
    one, given = watch(ManualClock()), Given(OSError("no"), {"cpu_percent": 2.0})
    assert (one.look(given), one.look(given)) == (False, True)
    [failure] = one.take_failures()
    assert str(failure) == "no"
    assert one.take_failures() == []
    assert named(one.window())["cpu_percent"] == 2.0


# The thread


def started(given: Given, **settings: Any) -> ResourceWatch:
    one = ResourceWatch(ResourcesConfig(**settings), make=lambda *_: given)
    one.start(Path("."))
    assert given.enough.wait(30.0)
    return one


def test_the_thread_samples_and_ends() -> None:
    given = Given()
    one = started(given)
    assert one.running
    [thread] = threads()
    assert thread.daemon
    one.start(Path("."))
    assert threads() == [thread]
    one.stop()
    assert (one.running, threads(), given.closed) == (False, [], 1)
    assert set(given.read_in) == {thread.ident} != {threading.get_ident()}
    assert named(one.window())["cpu_percent"] == 1.0  # what it found is still there
    one.stop()
    one.start(Path("."))
    assert len(threads()) == 1
    one.stop()


def test_switched_off_there_is_no_thread() -> None:
    one = ResourceWatch(ResourcesConfig(enabled=False))
    one.start()
    assert not one.running
    assert threads() == []
    assert one.window() == NOTHING


def test_the_thread_ends_with_its_object() -> None:
    given = Given()
    one = started(given, interval=3600.0)
    [thread] = threads()
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None
    thread.join(30.0)
    assert not thread.is_alive()
    assert given.closed == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_its_own() -> None:
    one = started(Given(), interval=3600.0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # nothing of pytest may run here
        told = b"failed"
        try:
            calm = not one.running
            one.stop()
            one.beats += 1
            empty = one.window() == NOTHING
            one.start(Path("."))
            own = one.running and len(threads()) == 1
            one.stop()
            told = b"well" if calm and empty and own and not threads() else b"wrong"
        finally:
            os.write(write, told)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"well"
    os.close(read)
    os.close(write)
    assert one.running
    one.stop()


def test_settings_travel_and_nothing_else() -> None:
    one = ResourceWatch(ResourcesConfig(interval=5.0))
    one.look(Given({"cpu_percent": 1.0}))
    one.start(Path("."))
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert other.config.interval == 5.0
        assert (other.running, other.beats, other.window()) == (False, 0, NOTHING)
    one.stop()


def test_a_cpu_run_asks_no_driver(tmp_path: Path) -> None:
    found = Readers(ResourcesConfig(), tmp_path, torch.device("cpu")).read(0.0)
    assert not [name for name in found if name.startswith("gpu")]
    assert found["process_rss_mb"] > 10
    assert 0 < found["host_memory_percent"] < 100


# In a monitor without a Trainer


def test_a_plain_loop_samples_until_it_lets_go() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 2, "on_monitor_error": "raise"})
    given = Given({"cpu_percent": 120.0, "gpu_memory_percent": 99.0})
    monitor.resources._make = lambda *_: given
    assert threads() == []
    with monitor.track_performance():
        assert given.enough.wait(30.0)
    assert monitor.resources.running
    monitor.resources.stop()  # its sample is there
    monitor.step()
    snapshot = monitor.snapshot
    assert snapshot.value("cpu_percent") == 120.0
    assert snapshot.value("gpu_memory_percent_max", over="window") == 99.0
    assert snapshot.greatest("gpu_memory_percent_max") == (99.0, 0)
    assert snapshot.unit("gpu_memory_percent") == "%"
    assert math.isnan(snapshot.value("gpu_utilization"))
    assert monitor.health.components["resources"].status.value == "healthy"
    monitor.detach()
    assert threads() == []


def test_without_samples_the_component_is_unknown() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1}, resources={"enabled": False})
    with monitor.track_performance():
        pass
    assert monitor.health.components["resources"].status.value == "unknown"
    assert not set(RESOURCE_NAMES) & set(monitor.snapshot.own)


def test_a_reader_that_fails_is_a_failure_of_the_monitor() -> None:
    monitor = CMRPerformanceMonitor({"log_every_n_steps": 1}, resources={"enabled": False})
    monitor.resources.look(Given(OSError("the sensors are gone")))
    with monitor.track_performance():
        pass
    assert monitor.failures == 1
    assert any("the sensors are gone" in line for line in monitor.error_log)
