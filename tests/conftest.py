"""Fixtures that many tests use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from cmr_monitor_callbacks import CMRMonitorCallback


@pytest.fixture
def strict() -> CMRMonitorCallback:
    """A callback whose own failures fail the test."""
    return CMRMonitorCallback(monitoring={"on_monitor_error": "raise"})


@pytest.fixture
def no_monitor_thread_left() -> Iterator[None]:
    """Fails if a thread of the monitor outlives the test."""
    before = set(threading.enumerate())  # a monitor without a Trainer keeps its channels' thread
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("cmr-monitor")]


@pytest.fixture(autouse=True)
def channels_are_closed() -> Iterator[None]:
    """A monitor without a Trainer keeps its channels' thread: not into the next test.

    Nor the one that samples the machine, until it is let go.
    """
    yield
    watches = sys.modules.get("cmr_monitor_callbacks.resources.watch")
    for watch in [] if watches is None else list(watches._ALL):
        watch.stop()
    delivery = sys.modules.get("cmr_monitor_callbacks.alerts.delivery")
    for one in [] if delivery is None else list(delivery._ALL):
        one.close(1.0)
