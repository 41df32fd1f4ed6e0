"""The device's clock: a fixed number of events, asked and never waited for."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from typing import Any

import pytest
import torch

from cmr_monitor_callbacks.recording.device_clock import DeviceSeconds, cuda_device_of
from tests.fake_cuda import FakeDevice


def free(clock: Any) -> int:
    return len(clock._free)


def timed(clock: Any, device: FakeDevice, seconds: float) -> DeviceSeconds:
    start = clock.now()
    device.launch(seconds)
    took: DeviceSeconds = clock.now() - start
    return took


def test_a_duration_is_that_of_the_device_and_known_once_it_is_over() -> None:
    device = FakeDevice()
    clock = device.clock()
    took = timed(clock, device, 0.25)
    clock.harvest()
    assert took.pending and took.seconds is None and math.isnan(took)
    device.run()
    clock.harvest()
    assert not took.pending
    assert took.seconds == pytest.approx(0.25)
    assert math.isnan(took + 1.0)  # whoever reckons with it is not told a wrong number


def test_durations_may_overlap_and_share_a_moment() -> None:
    device = FakeDevice()
    clock = device.clock(size=6)
    outer = clock.now()
    device.launch(0.1)
    middle = clock.now()
    first = middle - outer
    device.launch(0.2)
    end = clock.now()
    second, whole = end - middle, end - outer
    del outer, middle, end
    device.run()
    clock.harvest()
    found = [first.seconds, second.seconds, whole.seconds]
    assert found == pytest.approx([0.1, 0.2, 0.3])
    assert free(clock) == 6


def test_no_event_is_made_after_the_first_moment() -> None:
    device = FakeDevice()
    clock = device.clock(size=8)
    kept = [timed(clock, device, 0.01) for _ in range(2)]
    for _ in range(500):
        took = timed(clock, device, 0.01)
        device.run()
        kept.append(took)
    clock.harvest()
    assert device.made == 8
    assert clock.dropped == 0
    assert [one.seconds for one in kept] == pytest.approx([0.01] * 502)


def test_without_a_free_event_a_sample_is_dropped_and_counted_not_waited_for() -> None:
    device = FakeDevice()
    clock = device.clock(size=4)
    kept = [timed(clock, device, 0.01) for _ in range(2)]
    assert clock.now() is None and clock.now() is None
    assert clock.dropped == 2
    device.run()  # from here on the ring finds by itself what is over
    assert timed(clock, device, 0.03).pending
    assert [one.seconds for one in kept] == pytest.approx([0.01, 0.01])
    assert clock.dropped == 2


def test_a_start_without_an_end_is_lost_once() -> None:
    device = FakeDevice()
    clock = device.clock(size=1)
    start = clock.now()
    lost = clock.now() - start
    assert (lost.pending, lost.seconds, clock.dropped) == (False, None, 1)


def test_a_call_that_raises_gives_its_event_back() -> None:
    device = FakeDevice()
    clock = device.clock(size=2)

    def call() -> None:
        start = clock.now()
        assert start is not None
        raise ValueError

    for _ in range(10):
        with pytest.raises(ValueError):
            call()
    gc.collect()
    assert free(clock) == 2 and clock.dropped == 0


def test_a_moment_of_the_host_or_of_another_clock_is_no_duration() -> None:
    clock, other = FakeDevice().clock(), FakeDevice().clock()
    for lost in (clock.now() - 1.5, 1.5 - clock.now(), clock.now() - other.now()):  # type: ignore[operator]
        assert (lost.pending, lost.seconds) == (False, None)


def test_while_a_graph_is_captured_nothing_is_recorded_or_asked() -> None:
    device = FakeDevice()
    clock = device.clock()
    took = timed(clock, device, 0.1)
    device.run()
    device.capturing = True
    assert clock.now() is None
    clock.harvest()
    assert took.pending
    assert clock.dropped == 0  # nothing was to be measured
    device.capturing = False
    clock.harvest()
    assert took.seconds == pytest.approx(0.1)


def test_a_broken_device_is_not_told_by_the_clock() -> None:
    device = FakeDevice()
    clock = device.clock()
    took = timed(clock, device, 0.1)
    device.broken = True
    assert clock.now() is None
    clock.harvest()
    assert (took.pending, took.seconds) == (False, None)
    assert clock.dropped == 2


def test_events_out_of_order_are_lost() -> None:
    device = FakeDevice()
    clock = device.clock()
    early = clock.now()
    device.launch(0.1)
    backward = early - clock.now()  # type: ignore[operator]
    device.run()
    clock.harvest()
    assert (backward.pending, backward.seconds) == (False, None)


def test_what_is_closed_takes_what_is_over_and_drops_the_rest() -> None:
    device = FakeDevice()
    clock = device.clock()
    over = timed(clock, device, 0.1)
    device.run()
    late = timed(clock, device, 0.1)
    clock.close()
    assert over.seconds == pytest.approx(0.1)
    assert (late.pending, late.seconds, clock.dropped) == (False, None, 1)
    assert clock.now() is None


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_measures_nothing(how: Any) -> None:
    clock = FakeDevice().clock(size=4)
    moment = clock.now()
    assert moment is not None
    for original in (moment, moment - moment):
        assert math.isnan(how(original))
        assert not getattr(how(original), "pending", False)
    if how is not copy.copy:
        copied = how(clock)
        assert copied.now() is None and copied.dropped == 0
        assert clock.now() is not None


def test_the_device_of_a_model_is_the_one_that_holds_all_of_it() -> None:
    def on(*names: str) -> torch.nn.Module:
        model = torch.nn.Module()
        for i, name in enumerate(names):
            model.register_buffer(f"b{i}", torch.empty(1, device=name))
        return model

    with torch._subclasses.FakeTensorMode():
        assert cuda_device_of(on("cpu")) is None
        assert cuda_device_of(on("meta")) is None
        assert cuda_device_of(on("cuda:1")) == torch.device("cuda", 1)
        assert cuda_device_of(on("cuda:1", "cpu")) == torch.device("cuda", 1)
        assert cuda_device_of(on("cuda:1", "cuda:0")) is None
