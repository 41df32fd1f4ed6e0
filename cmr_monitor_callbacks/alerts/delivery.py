"""Delivery: notices reach their channels on threads of the monitor's own.

The training thread puts a notice into bounded queues and goes on: it opens no socket, writes no
file and waits for nobody. Channels that end on this machine share a thread; each that may be slow
or away has one of its own, so that a dead server delays no other channel.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from cmr_monitor_callbacks.alerts.channels import Channel, Retry, Surroundings, make_channel
from cmr_monitor_callbacks.alerts.notice import Notice
from cmr_monitor_callbacks.config.channels import CallbackConfig, ChannelConfig, RemoteConfig
from cmr_monitor_callbacks.health import Severity

logger = logging.getLogger(__name__)
FLUSH: Final = 5.0
"""Seconds in all that pending notices have at the end of a run."""
_LONGEST_WAIT: Final = 60.0
_LONGEST_ASKED: Final = 900.0
"""Most seconds that a server's ``Retry-After`` is honoured; notices behind it wait as long."""
_LOCAL_QUEUE: Final = 1024
_MAY_BE_SLOW: Final = (RemoteConfig, CallbackConfig)
"""Settings of channels that have a thread of their own."""


class Delivery:
    """Takes notices and hands them to channels.

    Args:
        channels: settings by name.

    Attributes:
        around: what the channels find; may be changed between runs.

    Raises:
        ConfigError: a channel cannot be made.
    """

    def __init__(self, channels: Mapping[str, ChannelConfig]) -> None:
        self.around = Surroundings()
        made = {
            name: (make_channel(config, self.around), config) for name, config in channels.items()
        }
        local = {n: (c, s) for n, (c, s) in made.items() if not isinstance(s, _MAY_BE_SLOW)}
        self._lines = [_Line(local, None)] if local else []
        for name, (channel, config) in made.items():
            if isinstance(config, _MAY_BE_SLOW):
                remote = config if isinstance(config, RemoteConfig) else None
                self._lines.append(_Line({name: (channel, config)}, remote))
        _ALL.add(self)

    def submit(self, notice: Notice) -> None:
        """Have a notice delivered; returns at once."""
        for line in self._lines:
            line.put(notice)

    def take_failures(self) -> list[tuple[str, Exception]]:
        """What went wrong since the last call: the channel and the error."""
        return [failure for line in self._lines for failure in line.take_failures()]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """By channel: notices ``sent``, ``lost`` and tries that were ``retried``."""
        return {name: dict(counts) for line in self._lines for name, counts in line.counts.items()}

    @property
    def dropped(self) -> int:
        """Notices that were lost before a channel had them, counted once for each channel."""
        return sum(line.dropped for line in self._lines)

    def flush(self, timeout: float = FLUSH, *, remote: bool = True) -> bool:
        """Wait until all is delivered, but not longer than so many seconds.

        Args:
            timeout: in seconds.
            remote: whether channels that may be slow or away are waited for.

        Returns:
            whether it was.
        """
        end = time.monotonic() + timeout
        lines = [line for line in self._lines if remote or not line.may_be_slow]
        return all([line.wait(end - time.monotonic()) for line in lines])

    def close(self, timeout: float = FLUSH) -> None:
        """Deliver what is pending in so many seconds; what is left is lost, counted and logged.

        A later notice begins anew.
        """
        end = time.monotonic() + timeout
        for line in self._lines:
            line.hurry()
        for line in self._lines:
            line.stop(max(0.0, end - time.monotonic()))


_ALL: weakref.WeakSet[Delivery] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A plain loop that ends without closing its monitor loses no notice."""
    for delivery in list(_ALL):
        delivery.close()


class _Line:
    """A queue, the channels that it feeds, and their thread, which starts with the first notice.

    Args:
        channels: with their settings, by name.
        remote: how often to try again and how many may wait; None: local channels.
    """

    def __init__(
        self, channels: Mapping[str, tuple[Channel, ChannelConfig]], remote: RemoteConfig | None
    ) -> None:
        self._channels = channels
        self.may_be_slow = any(isinstance(made[1], _MAY_BE_SLOW) for made in channels.values())
        self._limit = _LOCAL_QUEUE if remote is None else remote.queue
        self._retries = 0 if remote is None else remote.retries
        self._backoff = 0.0 if remote is None else remote.backoff
        self.counts = {name: {"sent": 0, "lost": 0, "retried": 0} for name in channels}
        self.dropped = 0
        self._queue: deque[Notice] = deque()
        self._failures: deque[tuple[str, Exception]] = deque(maxlen=100)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._wake, self._idle, self._hurry = (threading.Event() for _ in range(3))
        self._idle.set()

    def __getstate__(self) -> dict[str, Any]:
        """Settings and counts go to another process; threads and what is pending do not."""
        left_out = ("_thread", "_starting", "_wake", "_idle", "_hurry", "_queue")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._queue = deque()
        self._begin_anew()

    def put(self, notice: Notice) -> None:
        """Queue a notice; never waits. Where too many wait, the oldest is lost."""
        if self._process != os.getpid():  # forked: the thread stayed behind
            self._queue.clear()
            self._begin_anew()
        if len(self._queue) >= self._limit:
            with suppress(IndexError):  # the thread took it meanwhile
                self._lose(self._queue.popleft(), "too many wait")
        self._queue.append(notice)
        self._idle.clear()
        self._wake.set()
        if self._thread is None:
            with self._starting:  # a stall is told of on another thread
                self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name=f"cmr-monitor-{'-'.join(self._channels)}", daemon=True
            )
            self._thread.start()

    def take_failures(self) -> list[tuple[str, Exception]]:
        """What went wrong since the last call."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is pending."""
        return self._idle.wait(max(0.0, seconds))

    def hurry(self) -> None:
        """Wait for nothing between two tries any more."""
        self._hurry.set()
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """End the thread; what it did not deliver in time is lost."""
        thread = self._thread
        if thread is None or self._process != os.getpid():
            self._begin_anew()
            return
        thread.join(seconds)
        left = [*self._queue]
        self._queue.clear()
        if thread.is_alive():  # its channel hangs: it is left behind, a daemon, with what it holds
            self._queue = deque()
            for name in self._channels:
                self.counts[name]["lost"] += 1
            logger.warning(
                "%s: no answer at the end of the run; %d notices are lost",
                ", ".join(self._channels),
                1 + len(left),
            )
            for notice in left:
                self._lose(notice, "the run has ended")
        for channel, _ in self._channels.values():
            channel.close()
        self._begin_anew()

    def _lose(self, notice: Notice, why: str) -> None:
        for name, (_, config) in self._channels.items():
            if _concerning(notice, config) is not None:
                self.counts[name]["lost"] += 1
                self.dropped += 1
                self._failures.append((f"channel {name}", RuntimeError(f"a notice is lost: {why}")))

    def _run(self) -> None:
        queue, wake, idle, hurry = self._queue, self._wake, self._idle, self._hurry
        while True:
            wake.wait()
            wake.clear()
            while queue:
                try:
                    notice = queue.popleft()
                except IndexError:  # the training thread took it away: too many waited
                    break
                for name, (channel, config) in self._channels.items():
                    part = _concerning(notice, config)
                    if part is not None:
                        self._deliver(name, channel, part, hurry)
            idle.set()
            if queue:  # put meanwhile
                idle.clear()
                wake.set()
            elif hurry.is_set():
                return

    def _deliver(self, name: str, channel: Channel, notice: Notice, hurry: threading.Event) -> None:
        counts = self.counts[name]
        for attempt in range(1 + self._retries):
            try:
                channel.send(notice)
            except Retry as error:
                if attempt == self._retries:
                    break
                counts["retried"] += 1
                self._note(name, error)
                pause = min(_LONGEST_WAIT, self._backoff * 2**attempt * random.uniform(0.8, 1.2))
                if error.after:
                    pause = min(_LONGEST_ASKED, error.after)
                hurry.wait(pause)  # at the end of a run the next try comes at once
            except (SystemExit, KeyboardInterrupt) as error:  # a function's own: the thread goes on
                counts["lost"] += 1
                self._note(name, RuntimeError(f"it raised {type(error).__name__}"))
                return
            except Exception as error:
                counts["lost"] += 1
                self._note(name, error)
                return
            else:
                counts["sent"] += 1
                return
        counts["lost"] += 1
        self._note(name, RuntimeError(f"a notice is lost after {1 + self._retries} tries"))

    def _note(self, name: str, error: Exception) -> None:
        self._failures.append((f"channel {name}", error))


def _concerning(notice: Notice, config: ChannelConfig) -> Notice | None:
    """What a channel is told of a notice: its alerts that are severe enough; a summary whole."""
    least = Severity(config.min_severity).rank
    alerts = tuple(alert for alert in notice.alerts if alert.severity.rank >= least)
    if notice.summary or len(alerts) == len(notice.alerts):
        return notice if alerts or notice.severity.rank >= least else None
    return replace(notice, alerts=alerts, severity=alerts[0].severity) if alerts else None
