"""The thread that samples the machine while a run goes on."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from cmr_monitor_callbacks.clock import Clock, SystemClock
from cmr_monitor_callbacks.config.resources import ResourcesConfig
from cmr_monitor_callbacks.resources.allocator import read_allocator, used_devices, uuid_of
from cmr_monitor_callbacks.resources.gpu import GpuReader
from cmr_monitor_callbacks.resources.host import HostReader
from cmr_monitor_callbacks.resources.samples import NOTHING, Numbers, Sample, window_of

_KEPT: Final = 10_000
_HOLDS: Final = 3.0
"""Intervals for which a sample stands for windows that have none of their own."""
_JOIN: Final = 5.0
"""Seconds that a sample under way is waited for at the end; a driver may hang in it."""


class Readers:
    """What is read for one sample; made and used on the sampling thread alone.

    Args:
        config: what is sampled.
        folder: of the run's logs.
        device: the device that this process trains on; None: those that torch holds memory on.
    """

    def __init__(self, config: ResourcesConfig, folder: Path, device: torch.device | None) -> None:
        self._device = device
        self._host = HostReader([folder, *map(Path, config.disks)])
        self._gpu = GpuReader(self._wanted) if config.gpu else None

    def read(self, now: float) -> dict[str, float]:
        """One sample at ``now``, in seconds."""
        out = self._host.read(now)
        if self._gpu is not None:
            out |= self._gpu.read(now) | read_allocator(self._devices())
        return out

    def forget(self) -> None:
        """The time since the last sample is not to be counted."""
        self._host.forget()

    def close(self) -> None:
        """Let go of the driver."""
        if self._gpu is not None:
            self._gpu.close()

    def _devices(self) -> list[int]:
        if self._device is None:
            return used_devices()
        return [] if self._device.type != "cuda" else [self._device.index or 0]

    def _wanted(self) -> list[tuple[int, str]]:
        return [(index, uuid_of(index)) for index in self._devices()]


class ResourceWatch:
    """Samples the machine on a thread of its own, and hands what it found to whoever asks.

    The thread ends with `stop`, with this object, and with the process; a forked process has none
    until it starts one. Pickled, settings go along and nothing else.

    Args:
        config: what is sampled, and how often.
        clock: where time comes from.
        step: says which step is under way.
        make: makes the readers, on the sampling thread.

    Attributes:
        beats: steps so far, of any stage; whoever trains adds one. While it stands still for
            ``config.rest_after`` nothing is sampled.

    >>> watch = ResourceWatch(ResourcesConfig())
    >>> watch.start(Path("."))
    >>> watch.running
    True
    >>> watch.stop()
    >>> watch.running
    False
    """

    def __init__(
        self,
        config: ResourcesConfig,
        clock: Clock | None = None,
        step: Callable[[], int] = int,
        make: Callable[[ResourcesConfig, Path, torch.device | None], Any] = Readers,
    ) -> None:
        self.config = config
        self.beats = 0
        self._clock = clock or SystemClock()
        self._step = step
        self._make = make
        self._begin_anew()
        _ALL.add(self)

    def _begin_anew(self) -> None:
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._process = os.getpid()
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._unkept: deque[Sample] = deque(maxlen=_KEPT)
        self._failures: deque[Exception] = deque(maxlen=100)
        self._newest: Sample | None = None
        self.seconds = 0.0
        self._seen, self._active_at, self._rests = -1, 0.0, False

    def __getstate__(self) -> dict[str, Any]:
        """Settings go to another process; the thread and what it found do not."""
        return {name: vars(self)[name] for name in ("config", "_clock", "_step", "_make")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, beats=0)
        self._begin_anew()
        _ALL.add(self)

    # -- on the training thread -----------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether this process samples."""
        return self._thread is not None and self._process == os.getpid()

    def start(self, folder: Path | None = None, device: torch.device | None = None) -> None:
        """Begin to sample, unless that is switched off or has begun.

        Args:
            folder: of the run's logs, whose disk is watched; None: the current one.
            device: the device that this process trains on; None: those that torch holds memory on.
        """
        if self.running or not self.config.enabled:
            return
        if self._process != os.getpid():  # forked: what is here is the other process'
            self._begin_anew()
        self._ended = threading.Event()
        self._seen = -1
        place = folder or Path.cwd()
        # the thread must not keep this object alive, nor wait long after it is gone
        weakref.finalize(self, self._ended.set)
        self._thread = threading.Thread(
            target=_run,
            args=(weakref.ref(self), self._ended, self._make, self.config, place, device),
            name="cmr-monitor-resources",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """Sample no more; what was found can still be taken."""
        thread, self._thread = self._thread, None
        if thread is not None and self._process == os.getpid():
            self._ended.set()
            thread.join(_JOIN)

    def window(self) -> Numbers:
        """The numbers of the samples since the last call.

        Without any the newest sample stands for them, for a while: windows may be shorter than the
        time between two samples.
        """
        found = self._drain()
        if found:
            return window_of(found)
        newest = self._newest
        if newest is None or self._clock.wall() - newest.time > _HOLDS * self.config.interval:
            return NOTHING
        return window_of([newest])

    def _drain(self) -> list[Sample]:
        if self._process != os.getpid():
            self._begin_anew()
        found = [self._samples.popleft() for _ in range(len(self._samples))]
        self._unkept.extend(found)
        if found:
            self._newest = found[-1]
        return found

    def take_samples(self) -> list[Sample]:
        """The samples that windows were made of since the last call, one by one."""
        return [self._unkept.popleft() for _ in range(len(self._unkept))]

    def take_failures(self) -> list[Exception]:
        """What went wrong since the last call."""
        return [self._failures.popleft() for _ in range(len(self._failures))]

    def forget(self) -> None:
        """Forget what was sampled."""
        self._samples.clear()
        self._unkept.clear()
        self._newest = None

    # -- on the sampling thread -----------------------------------------------------------------

    def look(self, readers: Any) -> bool:
        """Take a sample, unless training is at rest.

        Args:
            readers: see `Readers`.

        Returns:
            whether there is one.
        """
        now = self._clock.monotonic()
        if self.beats != self._seen:
            self._seen, self._active_at = self.beats, now
        if now - self._active_at > self.config.rest_after:
            self._rests = True
            return False
        if self._rests:
            self._rests = False
            readers.forget()
        try:
            values = readers.read(now)
        except Exception as error:  # told at the next window; the next sample may go better
            self._failures.append(error)
            return False
        self.seconds += self._clock.monotonic() - now
        self._samples.append(Sample(self._clock.wall(), self._step(), values))
        return True


_ALL: weakref.WeakSet[ResourceWatch] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A plain loop that ends without `stop` lets go of the driver in good order."""
    for watch in list(_ALL):
        watch.stop()


def _run(
    of: weakref.ref[ResourceWatch],
    ended: threading.Event,
    make: Callable[..., Any],
    config: ResourcesConfig,
    *where: Any,
) -> None:
    readers = make(config, *where)
    try:
        while not ended.is_set():
            watch = of()
            if watch is None:
                return
            watch.look(readers)
            del watch
            ended.wait(config.interval)
    finally:
        readers.close()
